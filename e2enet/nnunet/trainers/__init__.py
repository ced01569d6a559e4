"""The folder for nnU-Net's environment variable nnUNet_extTrainer; nnU-Net imports every module in it."""
