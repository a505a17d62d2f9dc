"""The use case: pictures in, predictions out, behind admission."""
