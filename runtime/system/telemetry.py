"""ONNX Runtime's telemetry is off before it is imported, unless whoever runs this process has set it otherwise.

Left on, it writes a device's id to the home folder, a store to the temporary one, and looks up its collector.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
