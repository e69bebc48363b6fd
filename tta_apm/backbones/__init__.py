"""Frozen networks: classifiers, CLIP, the masked autoencoder, the rotation net, MTTT's ViTs."""
