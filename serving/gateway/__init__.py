"""The HTTP gateway: uploaded images in, predictions out."""
