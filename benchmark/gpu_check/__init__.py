"""`deit benchmark gpu-check`: is this GPU host sound, and how fast is it? One command, unattended, step by step."""
