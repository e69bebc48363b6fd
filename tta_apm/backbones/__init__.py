"""Frozen networks: classifiers, CLIP, the masked autoencoder and the rotation net."""
