"""Our methods in ttab, by its stand-in."""

from __future__ import annotations

import pytest
import torch
from tta_apm_baselines.tent import Tent

from host_runs import OUR_CLIP, SMALL, SMALL_PAIRS, standin
from tta_apm.apm.method import Apm
from tta_apm.backbones.classifiers import Classifier

pytestmark = pytest.mark.usefixtures("hosts_of_digits")


@pytest.mark.slow
def test_ttab_images_are_denormalised_for_apm(in_host, digits_clip):
    found = in_host("ttab", "--model_adaptation_method", "apm", *OUR_CLIP, *SMALL_PAIRS)
    (run_exp,) = standin("ttab", "run_exp")
    method = Apm(digits_clip, **SMALL, seed=1)
    assert found["predictions"] == method(run_exp.images()).argmax(1).tolist()
    assert found["name"] == found["arguments"]["model_adaptation_method"] == "apm"
    assert found["arguments"]["tta_apm"]["APM"]["STEPS"] == 3
    assert found["arguments"]["tta_apm_backbone"] == "digits_clip"


@pytest.mark.parametrize("episodic", [False, True])
def test_ttab_tent_sees_what_the_hosts_network_saw(in_host, episodic):
    found = in_host("ttab", "--model_adaptation_method=tta_apm_tent", "TTA_APM_TENT.LR", "0.5",
                    "--episodic", str(episodic).lower())
    run_exp, networks = standin("ttab", "run_exp", "ttab.loads.define_model")
    statistics = run_exp.STATISTICS
    method = Tent(Classifier(networks.define_model(None), image_size=None, mean=statistics["mean"],
                             std=statistics["std"], name="net", weights=""), lr=0.5,
                  episodic=episodic)
    expected = torch.cat([method(batch) for batch in run_exp.images().split(8)])
    assert found["predictions"] == expected.argmax(1).tolist()


def test_ttabs_own_methods_still_run(in_host):
    assert in_host("ttab", "--model_adaptation_method", "tent")["name"] == "no_adaptation"


def test_ttabs_oracle_is_refused(refused):
    assert "last_iterate only" in refused(
        "ttab", "--model_adaptation_method", "tta_apm_tent",
        "--model_selection_method", "oracle_model_selection")
