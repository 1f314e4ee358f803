"""Workshop of models: what a package is, where packages come from, and how ONNX Runtime runs them."""
