"""The panels of --help."""

MODELS, GATEWAY, ACCESS, TRITON, LIMITS, LOG = "Models", "Gateway", "Access", "Triton", "Limits", "Log"
CAPTURE = "Capture"
