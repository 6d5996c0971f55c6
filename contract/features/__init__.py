"""Stored features of backbones, shared by the processes of a host."""
