"""The 19 corruptions of ImageNet-C and CIFAR-10-C, made from clean images."""
