"""OpenVINO as a provider: encoders on Intel's processors, the language model in ONNX Runtime."""
