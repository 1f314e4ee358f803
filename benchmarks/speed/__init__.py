"""What serving costs: the gateway, an empty app and other servers, measured side by side on one machine."""
