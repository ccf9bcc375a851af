"""The 40 zero-shot tasks of DataComp, of which 38 have a main metric (not FairFace and UTKFace).

Keys, names, sizes, main metrics and folders are from DataComp's tasklist.yml and from the Hub
repositories that its download_evalsets.py downloads.
"""

from dataclasses import dataclass
from typing import Any

from capmix.errors import UserError

DATACOMP = "datacomp"


@dataclass(frozen=True)
class EvalTask:
    """A task. `images` is the size of the full set, `hub` the Hub repository of its data."""

    key: str
    name: str
    images: int
    main_metric: str | None
    hub: str

    @property
    def folder(self) -> str:
        """The name of its folder in the directory of evaluation sets."""
        return self.hub.partition("/")[2]

    @property
    def folders(self) -> list[str]:
        """All supported names of its folder: DataComp's, then CLIP_benchmark's."""
        other = CLIP_BENCHMARK.get(self.key, self.folder.removesuffix("_test"))
        return list(dict.fromkeys([self.folder, other, f"{other}_test"]))


# Folder names of the retrieval sets in CLIP_benchmark's WebDataset format.
CLIP_BENCHMARK = {
    "retrieval/flickr_1k_test_image_text_retrieval": "wds_flickr30k",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "wds_mscoco_captions",
}

TASKS = (
    EvalTask(
        "vtab/caltech101",
        "Caltech-101",
        6085,
        "mean_per_class_recall",
        "djghosh/wds_vtab-caltech101_test",
    ),
    EvalTask("cifar10", "CIFAR-10", 10000, "acc1", "djghosh/wds_cifar10_test"),
    EvalTask("vtab/cifar100", "CIFAR-100", 10000, "acc1", "djghosh/wds_vtab-cifar100_test"),
    EvalTask(
        "vtab/clevr_count_all",
        "CLEVR Counts",
        15000,
        "acc1",
        "djghosh/wds_vtab-clevr_count_all_test",
    ),
    EvalTask(
        "vtab/clevr_closest_object_distance",
        "CLEVR Distance",
        15000,
        "acc1",
        "djghosh/wds_vtab-clevr_closest_object_distance_test",
    ),
    EvalTask("country211", "Country211", 21100, "acc1", "djghosh/wds_country211_test"),
    EvalTask("vtab/dtd", "Describable Textures", 1880, "acc1", "djghosh/wds_vtab-dtd_test"),
    EvalTask("vtab/eurosat", "EuroSAT", 5400, "acc1", "djghosh/wds_vtab-eurosat_test"),
    EvalTask(
        "fgvc_aircraft",
        "FGVC Aircraft",
        3333,
        "mean_per_class_recall",
        "djghosh/wds_fgvc_aircraft_test",
    ),
    EvalTask("food101", "Food-101", 25250, "acc1", "djghosh/wds_food101_test"),
    EvalTask("gtsrb", "GTSRB", 12630, "acc1", "djghosh/wds_gtsrb_test"),
    EvalTask("imagenet1k", "ImageNet 1k", 50000, "acc1", "djghosh/wds_imagenet1k_test"),
    EvalTask(
        "imagenet_sketch", "ImageNet Sketch", 50889, "acc1", "djghosh/wds_imagenet_sketch_test"
    ),
    EvalTask("imagenetv2", "ImageNet v2", 10000, "acc1", "djghosh/wds_imagenetv2_test"),
    EvalTask("imagenet-a", "ImageNet-A", 7500, "acc1", "djghosh/wds_imagenet-a_test"),
    EvalTask("imagenet-o", "ImageNet-O", 2000, "acc1", "djghosh/wds_imagenet-o_test"),
    EvalTask("imagenet-r", "ImageNet-R", 30000, "acc1", "djghosh/wds_imagenet-r_test"),
    EvalTask(
        "vtab/kitti_closest_vehicle_distance",
        "KITTI Vehicle Distance",
        711,
        "acc1",
        "djghosh/wds_vtab-kitti_closest_vehicle_distance_test",
    ),
    EvalTask("mnist", "MNIST", 10000, "acc1", "djghosh/wds_mnist_test"),
    EvalTask("objectnet", "ObjectNet", 18574, "acc1", "djghosh/wds_objectnet_test"),
    EvalTask(
        "vtab/flowers",
        "Oxford Flowers-102",
        6149,
        "mean_per_class_recall",
        "djghosh/wds_vtab-flowers_test",
    ),
    EvalTask(
        "vtab/pets", "Oxford-IIIT Pet", 3669, "mean_per_class_recall", "djghosh/wds_vtab-pets_test"
    ),
    EvalTask("voc2007", "Pascal VOC 2007", 14976, "acc1", "djghosh/wds_voc2007_test"),
    EvalTask("vtab/pcam", "PatchCamelyon", 32768, "acc1", "djghosh/wds_vtab-pcam_test"),
    EvalTask("renderedsst2", "Rendered SST2", 1821, "acc1", "djghosh/wds_renderedsst2_test"),
    EvalTask("vtab/resisc45", "RESISC45", 6300, "acc1", "djghosh/wds_vtab-resisc45_test"),
    EvalTask("cars", "Stanford Cars", 8041, "acc1", "djghosh/wds_cars_test"),
    EvalTask("stl10", "STL-10", 8000, "acc1", "djghosh/wds_stl10_test"),
    EvalTask("sun397", "SUN397", 108754, "acc1", "djghosh/wds_sun397_test"),
    EvalTask("vtab/svhn", "SVHN", 26032, "acc1", "djghosh/wds_vtab-svhn_test"),
    EvalTask(
        "retrieval/flickr_1k_test_image_text_retrieval",
        "Flickr",
        1000,
        "mean_recall@1",
        "nlphuji/flickr_1k_test_image_text_retrieval",
    ),
    EvalTask(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        5000,
        "mean_recall@1",
        "nlphuji/mscoco_2014_5k_test_image_text_retrieval",
    ),
    EvalTask("misc/winogavil", "WinoGAViL", 3563, "jaccard_score_10-12", "nlphuji/winogavil"),
    EvalTask(
        "wilds/iwildcam", "iWildCam", 42791, "F1-macro_all", "djghosh/wds_wilds-iwildcam_test"
    ),
    EvalTask("wilds/camelyon17", "Camelyon17", 85054, "acc1", "djghosh/wds_wilds-camelyon17_test"),
    EvalTask("wilds/fmow", "FMoW", 22108, "acc_worst_region", "djghosh/wds_wilds-fmow_test"),
    EvalTask(
        "fairness/dollar_street",
        "Dollar Street",
        3503,
        "acc_top5_wg",
        "djghosh/wds_dollar_street_test",
    ),
    EvalTask("fairness/geode", "GeoDE", 12488, "acc_wg", "djghosh/wds_geode_test"),
    EvalTask("fairness/fairface", "FairFace", 10954, None, "djghosh/wds_fairface_test"),
    EvalTask("fairness/utkface", "UTKFace", 23703, None, "djghosh/wds_utkface_test"),
)

# Task names by group, from DataComp's aggregate_scores.py.
GROUPS = {
    "ImageNet": ("ImageNet 1k",),
    "ImageNet dist. shifts": (
        "ImageNet Sketch",
        "ImageNet v2",
        "ImageNet-A",
        "ImageNet-O",
        "ImageNet-R",
        "ObjectNet",
    ),
    "VTAB": (
        "Caltech-101",
        "CIFAR-100",
        "CLEVR Counts",
        "CLEVR Distance",
        "Describable Textures",
        "EuroSAT",
        "KITTI Vehicle Distance",
        "Oxford Flowers-102",
        "Oxford-IIIT Pet",
        "PatchCamelyon",
        "RESISC45",
        "SVHN",
        "SUN397",
    ),
    "Retrieval": ("Flickr", "MSCOCO", "WinoGAViL"),
}
COUNTED = sum(task.main_metric is not None for task in TASKS)


def chosen_tasks(text: str) -> list[EvalTask | str]:
    """Parse comma-separated tasks: `datacomp` (all 40), task keys, or paths of other sets."""
    by_key = {task.key: task for task in TASKS}
    found: list[EvalTask | str] = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            raise UserError(f"--tasks {text}: expected comma-separated task names")
        found += TASKS if name == DATACOMP else [by_key.get(name, name)]
    return list(dict.fromkeys(found))


def aggregates(main_metrics: dict[str, float]) -> dict[str, Any]:
    """Compute unweighted means over DataComp's groups of tasks; `main_metrics` is by task name.

    The mean of an incomplete group is None. The mean over all 38 tasks is `Average`; over fewer
    tasks it is `Average of N of 38`, because it is not comparable with published averages.
    """
    found: dict[str, Any] = {}
    for group, names in GROUPS.items():
        values = [main_metrics[name] for name in names if name in main_metrics]
        found[group] = sum(values) / len(values) if len(values) == len(names) else None
    known = [task.name for task in TASKS if task.main_metric and task.name in main_metrics]
    values = [main_metrics[name] for name in known]
    if values:
        called = "Average" if len(known) == COUNTED else f"Average of {len(known)} of {COUNTED}"
        found[called] = sum(values) / len(values)
    return found
