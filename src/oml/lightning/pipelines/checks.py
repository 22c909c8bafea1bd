"""Configs of pipelines, checked as a whole before anything is loaded or written."""

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from difflib import get_close_matches
from operator import ge, le
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from oml.configs import ConfigError
from oml.const import IMAGE_EXTENSIONS, LABELS_COLUMN, TRAIN_SPLIT, VALIDATION_SPLIT
from oml.inference.embedding_files import EmbeddingWriter
from oml.lightning.pipelines import agreement
from oml.lightning.pipelines.agreement import TableFacts, read_facts, tried
from oml.lightning.pipelines.machine import machine_problems, trainer_problems, why_not_writable
from oml.lightning.pipelines.schema import (
    FREE_FIELDS,
    POSTPROCESSOR_TRAINING,
    PREDICTION,
    REQUIRED,
    TRAINING,
    VALIDATION,
    VALIDATION_TABLE,
    Field,
    Pipeline,
)
from oml.metrics.embeddings import EmbeddingMetrics
from oml.models.zoo import ZOO
from oml.registry import REGISTRIES
from oml.registry.arguments import argument_problems, fits, misfit
from oml.utils.misc import load_dotenv

__all__ = ["POSTPROCESSOR_TRAINING", "PREDICTION", "TRAINING", "VALIDATION", "checked", "find_problems"]

#: what pipelines offer to the components of a group when they build them
_OFFERED = {
    "criterion": ["label2category"],
    "logger": ["save_dir"],
    "optimizer": ["params"],
    "sampler": ["labels", "label2category", "seed"],
    "scheduler": ["optimizer"],
}
_OFFERED_SCHEDULES = {"one_cycle": ["total_steps", "max_lr"], "cosine_annealing": ["T_max"]}
_FILES = ("weights", "calibration")  # by which arguments of components name files
_WRITABLE = ("run_dir", "save_dir", "embeddings_cache_dir")
_TRANSFORMS = ("transforms_train", "transforms_val", "transforms_predict", "transforms_extraction")


class _DoesNotResolveError(Exception):
    """A value of a config that is not there; its texts are findings."""

    def __init__(self, *texts: str, is_missing: bool = False) -> None:
        super().__init__(*texts)
        self.is_missing = is_missing


def checked(cfg: Mapping[str, Any] | DictConfig, pipeline: Pipeline) -> DictConfig:
    """The config with its defaults filled in, its interpolations resolved and its paths absolute.

    Relative paths are those of the folder in which the person stands, also in a job of Hydra that changes it. Sizes
    that a loss leaves out are those of the table and the extractor. Reading an unknown field of the result is an error.

    Raises:
        ConfigError: with everything that is wrong with the config, see :func:`find_problems`.
    """
    check = _Check(cfg, pipeline)
    if check.problems:
        raise ConfigError(check.problems)
    config = OmegaConf.create(check.config, flags={"allow_objects": True})
    OmegaConf.set_struct(config, True)
    return config


def find_problems(cfg: Mapping[str, Any] | DictConfig, pipeline: Pipeline) -> list[str]:
    """Everything that is wrong with a config, a line each, beginning with the field.

    Tables are read, and their images looked for. Neither images nor weights are opened, no network is made but of
    shapes alone, nothing is downloaded, and nothing is written.
    """
    return _Check(cfg, pipeline).problems


class _Check:
    """One pass over a config.

    Attributes:
        problems: what is wrong.
        config: the config as ``checked`` returns it.
        good: its fields with which nothing has been wrong so far: what others are compared with.
    """

    def __init__(self, cfg: Mapping[str, Any] | DictConfig, pipeline: Pipeline) -> None:
        self.problems: list[str] = []
        self.pipeline = pipeline
        self.config, broken, free = self._resolve(cfg)
        self.good = self._check_fields(self.config, pipeline.fields, broken, free | FREE_FIELDS)
        self._make_paths_absolute()
        self._check_machine_and_folders()
        facts = self._check_tables()
        self._check_parts(facts.get(""))
        self._check_metrics(facts)

    def _resolve(self, cfg: Mapping[str, Any] | DictConfig) -> tuple[dict[str, Any], set[str], set[str]]:
        """The config as plain values; fields that do not resolve, which it lacks; those that others refer to."""
        node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg), flags={"allow_objects": True})
        values, broken = {}, set()
        for key in node:
            try:
                values[str(key)] = self._resolved(node, key, str(key))
            except _DoesNotResolveError as error:
                broken.add(str(key))
                if key not in FREE_FIELDS or error.is_missing:  # what nobody reads need not resolve
                    self.problems += error.args
        free = set(re.findall(r"\$\{\.*(\w+)[.\[}]", OmegaConf.to_yaml(node, resolve=False)))
        values.pop("hydra", None)
        return values, broken, free

    def _resolved(self, parent: DictConfig | ListConfig, key: Any, place: str) -> Any:
        try:
            value = parent[key]
        except MissingMandatoryValue as error:
            raise _DoesNotResolveError(f"{place}: is ???, so must be given.", is_missing=True) from error
        except InterpolationToMissingValueError as error:
            raise _DoesNotResolveError from error  # that one is a finding itself
        except Exception as error:  # resolvers raise what they like
            raise _DoesNotResolveError(f"{place}: does not resolve: {str(error).splitlines()[0]}.") from error
        if isinstance(value, DictConfig):
            return {name: self._resolved(value, name, f"{place}.{name}") for name in value}
        if isinstance(value, ListConfig):
            return [self._resolved(value, i, f"{place}[{i}]") for i in range(len(value))]
        return value

    def _check_fields(
        self,
        values: dict[str, Any],
        fields: Mapping[str, Field],
        broken: Collection[str] = (),
        free: Collection[str] = (),
        prefix: str = "",
    ) -> dict[str, Any]:
        """Those with which nothing is wrong; defaults are filled in."""
        owner = f"the {self.pipeline.name} pipeline" if not prefix else prefix.rstrip(".")
        meant: set[str] = set(broken)
        for name in values:
            if name in fields or name in free:
                continue
            close = get_close_matches(str(name), [each for each in fields if each not in values])
            meant.update(close)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            self.problems.append(f"{prefix}{name}: {owner} has no such field{hint}")
        good = {}
        for name, field in fields.items():
            if name not in values:
                if field.default is REQUIRED:
                    if name not in meant:
                        self.problems.append(f"{prefix}{name}: must be given: {field.help}.")
                    continue
                values[name] = dict(field.default) if isinstance(field.default, Mapping) else field.default
            elif values[name] is None and isinstance(field.default, Mapping):
                values[name] = {}
            if self._is_of_type(values[name], field, f"{prefix}{name}"):
                good[name] = values[name]
            if field.fields and isinstance(value := values[name], dict):
                n_before = len(self.problems)
                self._check_fields(value, field.fields, prefix=f"{prefix}{name}.")
                if len(self.problems) > n_before:
                    good.pop(name, None)
        return good

    def _is_of_type(self, value: Any, field: Field, place: str) -> bool:
        if not fits(value, field.type):
            is_mapping = Mapping in (field.type, *get_args(field.type))
            wanted = "a config {name, args}" if field.group else "a mapping"
            text = f"{wanted}: {field.help}; got {value!r}." if is_mapping else misfit(value, field.type)
            self.problems.append(f"{place}: needs {text}")
            return False
        for limit, is_kept, word in ((field.least, ge, "more"), (field.most, le, "less")):
            if limit is not None and value is not None and not is_kept(value, limit):
                self.problems.append(f"{place}: must be {limit} or {word}; got {value}.")
                return False
        return True

    def _make_paths_absolute(self) -> None:
        for name, field in self.pipeline.fields.items():
            if Path in get_args(field.type) and self.good.get(name) is not None:
                self.config[name] = self.good[name] = _absolute(self.good[name])
        _make_files_absolute(self.config)

    def _check_machine_and_folders(self) -> None:
        good, problems = self.good, self.problems
        if {"accelerator", "devices"} <= good.keys():
            problems += machine_problems(good)
        if isinstance(args := good.get("lightning_trainer_extra_args"), dict):
            problems += trainer_problems(args, "lightning_trainer_extra_args")
        for name in _WRITABLE:
            folder = good.get(name) or (Path.cwd() if name == "run_dir" and name in good else None)
            if folder and (reason := why_not_writable(Path(folder))):
                problems.append(f"{name}: {reason}.")
        if data_dir := good.get("data_dir"):
            suffixes = {f".{extension.lower()}" for extension in IMAGE_EXTENSIONS}
            if not Path(data_dir).is_dir():
                problems.append(f"data_dir: there is no folder {data_dir!r}.")
            elif not any(path.suffix.lower() in suffixes for path in Path(data_dir).rglob("*")):
                problems.append(
                    f"data_dir: there are no images in {data_dir!r}, no {', '.join(sorted(suffixes))} files."
                )
        if (resume := good.get("resume")) and not Path(resume).exists():
            problems.append(f"resume: there is neither a run's folder nor a checkpoint at {resume!r}.")
        output = good.get("output") or []
        for name in [output] if isinstance(output, str) else output:
            tried(problems, "output", lambda name=name: EmbeddingWriter(name))

    def _check_tables(self) -> dict[str, TableFacts | None]:
        """What the tables hold by their name, '' for the main one; ``None`` if something is wrong with one."""
        good, facts = self.good, {}
        main: dict[str, Any] = {name: good.get(name) for name in VALIDATION_TABLE}
        splits = [VALIDATION_SPLIT] if self.pipeline is VALIDATION else [TRAIN_SPLIT, VALIDATION_SPLIT]
        if None not in main.values():
            facts[""] = read_facts(self.problems, Path(main["dataset_root"]), main["dataframe_name"], splits)
        for table, own in (good.get("validation_tables") or {}).items():
            place, facts[table] = f"validation_tables.{table}", None
            if not isinstance(own, dict):
                self.problems.append(f"{place}: needs {{dataset_root, dataframe_name}}, got {own!r}.")
                continue
            n_before = len(self.problems)
            self._check_fields(own, VALIDATION_TABLE, prefix=f"{place}.")
            own.update({name: main[name] for name in VALIDATION_TABLE if own.get(name) is None})
            if len(self.problems) == n_before and None not in own.values():
                own["dataset_root"] = _absolute(own["dataset_root"])
                root, name = Path(own["dataset_root"]), own["dataframe_name"]
                facts[table] = read_facts(self.problems, root, name, [VALIDATION_SPLIT], f"{place}.")
        return facts

    def _check_parts(self, facts: TableFacts | None) -> None:
        """Components, and whether they fit each other and the main table."""
        good, problems, dim = self.good, self.problems, None
        self.criterion_name: str | None = None if "criterion" in self.pipeline.fields else ""
        if self._is_right("extractor"):
            extractor = agreement.build_without_weights(problems, good["extractor"])
            dim = None if extractor is None else tried([], "", lambda: extractor.feat_dim)
            if "criterion" in self.pipeline.fields:
                problems += agreement.freezing_problems(good, extractor)
        if good.get("criterion"):
            n_labels = None if facts is None else facts.train.df[LABELS_COLUMN].nunique()
            given = deepcopy(good["criterion"])
            sizes = agreement.size_problems(_with_args(good["criterion"]), n_labels, dim)
            if self._is_right("criterion") and not sizes:
                criterion = agreement.build_criterion(problems, good["criterion"], facts)
                self.criterion_name = None if criterion is None else getattr(criterion, "criterion_name", "")
            problems += sizes
            if dim is None:  # some networks cannot be made of shapes alone: their training fills it in
                self.config["criterion"] = given
        for name in _TRANSFORMS:
            if self._is_right(name):
                tried(problems, name, lambda name=name: REGISTRIES["transforms"].build(good[name]))
        if (self._is_right("sampler") or ("sampler" in good and good["sampler"] is None)) and facts is not None:
            problems += agreement.sampler_problems(good, facts)
        if self._is_right("logger") and good.get("log_images"):
            problems += agreement.picture_problems(REGISTRIES["logger"].find(good["logger"]["name"]))
        if isinstance(postprocessor := good.get("postprocessor"), dict):
            found = agreement.postprocessor_problems(postprocessor, dim)
            if not found and self.pipeline is POSTPROCESSOR_TRAINING:
                found = agreement.reranker_problems(good)
            problems += found

    def _check_metrics(self, facts: Mapping[str, TableFacts | None]) -> None:
        """What is computed, and who watches what; that includes the schedule of the learning rate."""
        good, problems = self.good, self.problems
        scheduling, scheduler = good.get("scheduling"), None
        asked = self.config.get("scheduling")
        if isinstance(asked, dict) and isinstance(config := asked.get("scheduler"), dict):
            offered = [*_OFFERED["scheduler"], *_OFFERED_SCHEDULES.get(str(config.get("name")), [])]
            if found := REGISTRIES["scheduler"].problems(config, offered, "scheduling.scheduler"):
                problems += found
                scheduling = None
        if self._is_right("optimizer"):
            scheduler = agreement.build_scheduler(problems, {**good, "scheduling": scheduling})
        if "metric_args" not in good:
            return
        args, n_before = good["metric_args"], len(problems)
        problems += [f"metric_args: {text}" for text in argument_problems("EmbeddingMetrics", EmbeddingMetrics, args)]
        metric = None if len(problems) > n_before else agreement.build_metric(problems, args)
        if metric is None or not {"metric_for_checkpointing", "valid_period"} <= good.keys():
            return
        watched = [good["metric_for_checkpointing"], (scheduling or {}).get("monitor_metric") or ""]
        # of a table that cannot be read, all categories that are asked for
        assumed = [parts[-3] for monitor in watched if len(parts := monitor.split("/")) > 2]
        names = []
        for table in {"": None, **facts}:
            one = facts.get(table)
            categories = assumed if one is None else one.query_categories
            names += agreement.metric_names(metric, categories, table)
        problems += agreement.monitor_problems(
            {**good, "scheduling": scheduling}, scheduler, names, self.criterion_name
        )

    def _is_right(self, name: str) -> bool:
        """Whether the config of a component is there and has nothing wrong with it; what is wrong is told."""
        if not isinstance(config := self.good.get(name), dict):
            return False
        group = self.pipeline.fields[name].group or name
        registry = REGISTRIES[group]
        if group == "logger":
            load_dotenv()  # has keys of services
        found = registry.problems(config, _OFFERED.get(group, ()), name)
        self.problems += found
        if group == "extractor":
            self.problems += agreement.weights_problems(registry, config, name)
        return not found


def _absolute(path: str | Path) -> str:
    """The path as seen from where the person stands, also in a job of Hydra that changes the folder."""
    from hydra.utils import to_absolute_path

    return to_absolute_path(str(Path(path).expanduser()))


def _make_files_absolute(value: Any) -> None:
    """Of weights and calibrations, in configs of models and postprocessors; names of weights stay what they are."""
    if isinstance(value, dict):
        for name in _FILES:
            file = value.get(name)
            if isinstance(file, str | Path) and file not in ZOO and Path(_absolute(file)).is_file():
                value[name] = _absolute(file)
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _make_files_absolute(each)


def _with_args(config: Any) -> Any:
    """The same config, in which it and all configs within have ``args``, to fill in."""
    if isinstance(config, dict):
        if config.get("args") is None and set(config) <= {"name", "args"} and "name" in config:
            config["args"] = {}
        for value in config.values():
            _with_args(value)
    elif isinstance(config, list):
        for value in config:
            _with_args(value)
    return config
