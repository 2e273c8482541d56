"""Checked before PyTorch is imported: ``schedule.end=1``, ``objective.weighting=vlb``."""

from betasigma.options import Count, ObjectiveOptions, OpenUnit, ScheduleOptions, option


class StraightPathOptions(ScheduleOptions):
    targets = ("rectified_flow.noise.StraightPath",)

    levels: Count = option(1000, "number of levels")
    end: OpenUnit = option(0.999, "share of noise at the last level")


class FlowMatchingOptions(ObjectiveOptions):
    targets = ("rectified_flow.training.FlowMatching",)
