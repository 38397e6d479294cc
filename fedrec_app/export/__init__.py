"""Models of finished runs for other machines: bundles, 8-bit bundles, and ONNX, each compared with the run's own."""

FORMATS = ("safetensors", "int8", "onnx")
"""What `fedrec export --format` takes."""
