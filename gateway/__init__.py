"""Sluicegate: a gateway that serves tabular ONNX models over HTTP, released by flags and watched for drift."""

__version__ = "0.1.0"
