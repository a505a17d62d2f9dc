"""convserve beside the servers one could use instead, measured in one run; see README.md."""

from contract.telemetry import disable_runtime_telemetry

# Modules of this package import onnxruntime at their top, so this comes before all of them.
disable_runtime_telemetry()
