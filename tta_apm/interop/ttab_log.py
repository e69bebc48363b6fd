"""ttab_log: a run of LINs-lab/ttab, log-1.json with arguments.json beside it. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tta_apm.errors import UserError
from tta_apm.interop.dotted import dotted
from tta_apm.report.imported_log import CLEAN, Log

# Arguments that describe a run, not the settings of its row.
_OF_THE_RUN = {"seed", "data_names", "job_name", "job_id", "timestamp", "python_path", "main_file",
               "script_path", "script_class_name", "num_jobs_per_node", "num_jobs_per_script",
               "wait_in_seconds_per_job", "root_path", "num_cpus", "tta_apm"}

_DOMAIN = re.compile(r"(\w+?_c)_(deterministic|stochastic)-(\w+)-(\d)", re.ASCII)
# The origin of a domain's images, by the middle word of its name.
_ORIGINS = {"deterministic": "files on disk", "stochastic": "made by the host on the fly"}


def ttab_log(file: Path, text: str, of: Mapping[str, Any], dataset: str) -> Log:
    """The run of a log-1.json, with its arguments.json beside it; see text_logs."""
    beside = file.with_name("arguments.json")
    try:
        entries = json.loads(text)
        arguments = json.loads(beside.read_text(encoding="utf-8"))
        overall = [entry for entry in entries if entry.get("type") == "overall"]
        accuracy = overall[-1]["accuracy_top1"]
        domains = arguments["data_names"].split(";")
        method = arguments["model_adaptation_method"]
        ours = arguments.get("tta_apm", {}).get(method.upper())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is incomplete or not a log of ttab with {beside.name} beside it: "
                        f"{error!r}") from error
    if len(overall) > 1:
        raise UserError(f"{file} holds {len(overall)} runs: import their logs separately")
    if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)) \
            or not 0 <= accuracy <= 100:
        raise UserError(f"{file}: accuracy_top1 {accuracy!r} is not between 0 and 100 %")
    if len(domains) > 1:
        raise UserError(f"{file} holds one accuracy over {len(domains)} domains, for which "
                        "tables have no column: run ttab once per domain")
    found = _DOMAIN.fullmatch(domains[0])
    if not found and any(f"_{kind}-" in domains[0] for kind in _ORIGINS):
        raise UserError(f"{beside}: data_names {domains[0]!r} has no severity from 1 to 5")
    name, made, corruption, severity = found.groups() if found else (domains[0], "", CLEAN, "0")
    shown = ({key.lower(): value for key, value in ours.items()} if ours else
             {key: arguments[key] for key in ("lr", "n_train_steps") if key in arguments})
    return Log(
        host="ttab", **of, method=method.removeprefix("tta_apm_") if ours else method,
        hyper_parameters=dotted(shown),
        backbone=arguments.get("tta_apm_backbone") or arguments.get("model_name", "not stated"),
        dataset=dataset or name,
        setting="episodic" if arguments.get("episodic") else "online",
        batch_size=arguments.get("batch_size"), seed=arguments.get("seed"),
        errors=[(corruption, int(severity), round(1 - accuracy / 100, 6),
                 arguments.get("data_size"))],
        settings={**{key: value for key, value in dotted(arguments).items()
                     if key.split(".")[0] not in _OF_THE_RUN},
                  **({"images": _ORIGINS[made]} if made else {})},
        ours=ours is not None)
