"""Contracts that other clients speak, thin: pictures in, answers out. Everything between is that of /classify."""
