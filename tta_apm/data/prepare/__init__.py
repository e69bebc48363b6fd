"""The commands of `tta-apm data`: checking, downloading and making data sets before a run."""
