"""A run that leaves home: a model folder with a card, the hub, ONNX."""
