"""What the gateway and the embedded Triton both know of a model repository."""
