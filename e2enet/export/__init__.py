"""Hand a trained model to other tools: MONAI bundles, ONNX, torch.export. `e2enet export` is the command.

Start with `bundle`, `onnx_model` and `torch_program`. Nothing is imported here, so that --help answers at once.
"""
