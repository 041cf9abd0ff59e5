"""Choice of the layers of a teacher to replace: measured, listed, or spread evenly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from worldsim.errors import WorldError
from worldsim.model.conversion import check_layers, spread_layers
from worldsim.storage.files import write_json
from worldsim.storage.tensors import read_object, sha256_of
from worldsim.world.video import VideoWorld
from worldsim.world.world import MODEL_FILE, World

FORMAT = 1


def teacher_digest(teacher: World) -> str:
    """Return the SHA-256 of a teacher's weights on disk: what a selection and a conversion belong to.

    Of a video world, whose weights are several files, it is a digest of their checksums.
    """
    assert teacher.folder is not None
    if isinstance(teacher, VideoWorld):
        return teacher.identity.rpartition("@")[2]
    return sha256_of(teacher.folder / MODEL_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScore:
    """What became of the teacher when one layer alone was replaced.

    Attributes:
        layer: Its number.
        psnr_change_db: Change of the roll-outs' PSNR by horizon, in dB; negative is worse.
        loss_before: Held-out loss of stage 1 of this layer before training.
        loss_after: The same after training.
    """

    layer: int
    psnr_change_db: dict[str, float]
    loss_before: float
    loss_after: float

    @property
    def mean_change_db(self) -> float:
        """Mean change of the PSNR over the horizons."""
        return fmean(self.psnr_change_db.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The scores of all layers of one teacher.

    Attributes:
        teacher: Its name.
        teacher_sha256: Digest of its weights.
        baseline_db: PSNR of the teacher's own roll-outs by horizon.
        scores: One for each layer.
    """

    teacher: str
    teacher_sha256: str
    baseline_db: dict[str, float]
    scores: list[LayerScore]

    @property
    def ranking(self) -> list[int]:
        """All layers, the one whose replacement hurt least first."""
        ranked = sorted(self.scores, key=lambda score: (-score.mean_change_db, score.loss_after))
        return [score.layer for score in ranked]

    def save(self, path: Path) -> None:
        """Write as JSON, completely or not at all."""
        data = {"format": FORMAT, "ranking": self.ranking, **asdict(self)}
        write_json(path, data)

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read what `save` wrote.

        Raises:
            WorldError: If it is something else.
        """
        if not path.is_file():
            raise WorldError(f"there is no selection {path}; python -m training.select_layers writes one")
        data = read_object(path)
        if data.pop("format", None) != FORMAT:
            raise WorldError(f"{path} is not a selection of layers of format {FORMAT}")
        ranking: Any = data.pop("ranking", None)
        try:
            selection = cls(**{**data, "scores": [LayerScore(**score) for score in data["scores"]]})
            is_whole = ranking == selection.ranking and sorted(ranking) == list(range(len(ranking)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WorldError(f"{path} is not a whole selection of layers: {error}") from error
        if not is_whole:
            raise WorldError(f"{path}: the ranking {ranking} does not follow from the scores")
        return selection


def choose_layers(teacher: World, layers: list[int], selection: str, share: float) -> list[int]:
    """Return the layers to replace, in order.

    Args:
        teacher: The model.
        layers: Those asked for by number; empty takes a share.
        selection: File from `select_layers`, whose first ones in rank are taken; empty spreads evenly.
        share: Of the layers to replace, rounded down as the paper does: 75 % of 30 are 22.

    Raises:
        WorldError: If they are not the teacher's, or both layers and a selection are given.
    """
    is_video = isinstance(teacher, VideoWorld)
    num_layers = (teacher.config.transformer if is_video else teacher.config.denoiser).num_layers
    if layers and selection:
        raise WorldError(f"layers {layers} and selection {selection} both say which layers: give one of them")
    if layers:
        check_layers(layers, num_layers, "layers")
        return sorted(layers)
    count = max(1, int(share * num_layers))
    if not selection:
        return spread_layers(num_layers, count)
    chosen = Selection.load(Path(selection))
    if (digest := teacher_digest(teacher)) != chosen.teacher_sha256:
        raise WorldError(
            f"{selection} was made for another teacher: {chosen.teacher} with weights "
            f"{chosen.teacher_sha256[:16]}, not {teacher.config.name} with {digest[:16]}"
        )
    check_layers(chosen.ranking, num_layers, selection)
    return sorted(chosen.ranking[:count])
