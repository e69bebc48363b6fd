"""Methods in a size for tests, as keywords by name: the defaults are the papers' and too large."""

from __future__ import annotations

from importlib.metadata import entry_points

from tta_apm.registry import METHODS

# The methods of this package, without plugins that a test has imported.
NAMES = sorted(point.name for point in entry_points(group=METHODS.group))
APM = dict(image_size=32, patch=8, code=32, hidden=(64, 32), steps=3, lr=3e-3)
SMALL = {"adacontrast": dict(queue=64),
         "apm": APM,
         "apm_surviving": APM,
         "cotta": dict(num_views=2),
         "eata": dict(fisher_alpha=1.0, diversity_margin=0.4, num_fisher_images=64),
         "memo": dict(num_views=4),
         "memo_surviving": dict(num_views=4, optimizer="adamw"),
         "note": dict(memory=8, update_every=8),
         "one_sample": dict(net="mlp", hidden=(48,), steps=3),
         "tpt": dict(num_views=10),
         "tpt_surviving": dict(num_views=10),
         "rotta": dict(memory=8, update_every=8),
         "rmt": dict(num_warm_up=64, warm_up_batch_size=32),
         "shot": dict(epochs=2, batch_size=8),
         "ttt": dict(steps=2, num_views=4),
         "ttt_mae": dict(steps=3, masks=4),
         "ttt_mae_surviving": dict(steps=3, masks=4),
         "ttt_online": dict(num_views=4),
         "uda_ss": dict(epochs=1, batch_size=64, digits=True, flip=False)}
