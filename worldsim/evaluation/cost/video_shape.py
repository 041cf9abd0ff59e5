"""Cost of long videos of a transformer of the Wan family with random weights, decoded frame by frame.

What a pass costs does not depend on what the weights hold. Nothing is read: networks and noise are made on
the device. The teacher's cache has its room from the start, since one that grows would be held twice for a
time, and it attends by the fastest of PyTorch's backends: a slow baseline is no baseline.
"""

# C h w latent size

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import device_memory, now
from worldsim.evaluation.cost.video_decoding import DecodingCost, make_decoder, measure_decoding
from worldsim.model.conversion import spread_layers
from worldsim.runtime.cuda_graphs import COMPILE_MODES, choose_compile, compiler_of
from worldsim.settings import check_settings, setting
from worldsim.wan.autoencoder import LAYOUTS, DecoderState, StreamingAutoencoder
from worldsim.wan.causal import FrameCache, commit_block, generate_block, reserved_cache
from worldsim.wan.config import FRAMES_PER_LATENT, PATCH, CausalConfig, WanConfig
from worldsim.wan.transformer import TextContext, WanTransformer

Draw = Callable[[Tensor, FrameCache], Tensor]
Commit = Callable[[Tensor, FrameCache], FrameCache]
PIXELS = 8
"""Along the side of what one latent shows."""
MODELS = {
    "teacher, full cache": (False, False),
    "teacher, window": (False, True),
    "hybrid, window": (True, True),
    "hybrid, full cache": (True, False),
}
"""What can be compared: whether a share of the layers is hybrid, and whether the others see a window."""
PARTS = ("draw", "decode", "commit")
LATE = 8
"""Blocks whose mean stands for the time of one."""
WARM_UP = 2
"""Blocks that are drawn before any is timed: kernels are chosen and compiled then."""


@dataclass(kw_only=True, slots=True)
class VideoShapeConfig:
    """Shape of the network, and what is drawn; the defaults are those of a frame-wise model of two steps."""

    shape: WanConfig = setting(WanConfig, "The network; Wan 2.1 T2V 1.3B.")
    causal: CausalConfig = setting(
        lambda: CausalConfig(block=1, steps=[1000, 500]), "Blocks, steps, and the window where there is one."
    )
    share: float = setting(0.75, "Share of layers that become hybrid, rounded down.", above=0, maximum=1)
    models: list[str] = setting(lambda: list(MODELS)[:3], f"What is compared, of: {'; '.join(MODELS)}.")
    height: int = setting(480, "Of a frame in pixels, a multiple of 16.", minimum=16)
    width: int = setting(832, "Of a frame in pixels, a multiple of 16.", minimum=16)
    frames: list[int] = setting([81, 405, 921, 1005], "Displayed frames at which all is noted.", minimum=2)
    late: int = setting(
        0, "Displayed frames at which the clock of a full window is set, to draw on from; 0: none.", minimum=0
    )
    decoder_width: int = setting(96, "Of the autoencoder; 0 draws latents alone.", minimum=0)
    decoder_layout: str = setting(
        "auto",
        f"Of the decoder's weights in memory: {', '.join(LAYOUTS)}, or the faster of them, auto.",
        choices=("auto", *LAYOUTS),
    )
    cudnn_benchmark: bool = setting(
        True, "Let cuDNN choose the kernels of a compiled decoder by timing them, as in play."
    )
    compile: str = setting(
        "auto",
        "How blocks are launched once their window is full, as in play: auto, none, cudagraphs, or inductor, "
        "which also compiles the layers and the decoder.",
        choices=COMPILE_MODES,
    )

    def __post_init__(self) -> None:
        check_settings(self, "video.")
        if not self.models or not set(self.models) <= set(MODELS):
            known, given = "; ".join(MODELS), "; ".join(self.models)
            raise WorldError(f"video.models must be some of {known}, got {given or 'none'}")
        if not self.frames or self.height % (PIXELS * PATCH) or self.width % (PIXELS * PATCH):
            raise WorldError(
                f"video.frames must name some, and sides be multiples of {PIXELS * PATCH}: "
                f"got {self.frames}, {self.width} x {self.height}"
            )
        if self.causal.window is None:
            raise WorldError("video.causal.window must be a number: video.models names models without one")
        full = 1 + FRAMES_PER_LATENT * (self.blocks_to_fill * self.causal.block - 1)
        if self.late and min(self.late, max(self.frames)) < full:
            raise WorldError(
                f"video.late and the longest of video.frames must be at least {full}, at which the window is "
                f"full: got {self.late} and {max(self.frames)}"
            )

    @property
    def blocks_to_fill(self) -> int:
        """Blocks behind which the window has no free places."""
        return -(-(self.causal.sink + (self.causal.kept or 0)) // self.causal.block)

    @property
    def num_blocks(self) -> int:
        """Blocks of the longest video."""
        return self.blocks_of(max(self.frames))

    def blocks_of(self, frames: int) -> int:
        """Return in how many blocks so many displayed frames are whole."""
        latents = 1 + -(-(frames - 1) // FRAMES_PER_LATENT)
        return -(-latents // self.causal.block)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame."""
        return self.height * self.width // (PIXELS * PATCH) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkCost:
    """What a video of so many displayed frames cost.

    Attributes:
        seconds: From its first block on, recording included; None where the memory did not suffice, and where
            the clock was set to the length.
        peak_bytes: Of a GPU's tensors until then, weights among them.
        cache_bytes: Of what is kept of past frames.
        frames_per_second: Displayed frames a second of the blocks before, one at a time.
        block_ms: Of these blocks, by part: draw, decode, commit; but of the one that was recorded.
        launched: How the latest of them was launched: `none`, kernel by kernel, or `cudagraphs`.
    """

    frames: int
    seconds: float | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    frames_per_second: float | None = None
    block_ms: Mapping[str, float] = field(default_factory=dict)
    launched: str = "none"


@dataclass(frozen=True, slots=True)
class Step:
    """A block: how it was launched, and the milliseconds of its parts."""

    launched: str
    block_ms: Mapping[str, float]


@dataclass(slots=True)
class Drawing:
    """A video being drawn: networks, and what the next block depends on.

    Once the window is full, blocks are launched as `compile` says, as those of a world that is played.
    """

    model: WanTransformer
    causal: CausalConfig
    text: TextContext
    decoder: StreamingAutoencoder | None
    cache: FrameCache
    generator: torch.Generator
    size: tuple[int, int]
    decoded: DecoderState
    compile: str = "none"
    is_fused: bool = False
    """Whether the decoder is compiled, and the layers that see a full window."""
    drawn: int = 0
    """Latent frames so far, on the host: nobody waits for the device to know whether the window is full."""
    recorded: tuple[Draw, Commit] | None = None
    """Drawing and committing, once they were recorded; decoding is not, as in play."""

    @property
    def is_full(self) -> bool:
        """Whether the next block sees a window without free places, so that it can be recorded."""
        return self.causal.kept is not None and self.drawn >= self.causal.sink + self.causal.kept

    @property
    def launched(self) -> str:
        """How the latest block was launched."""
        return self.compile if self.recorded else "none"

    def step(self) -> dict[str, float]:
        """Draw, decode and commit a block; returns the milliseconds of each."""
        device, taken = self.generator.device, {}
        for part, run in self.parts():
            begun = now(device)
            run()
            taken[part] = 1e3 * (now(device) - begun)
        return taken

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield the name of each of `PARTS` of the next block, and what does it, which is to be called."""
        device, steps = self.generator.device, len(self.causal.steps)
        draw, commit = self._functions()
        shape = (1, self.model.config.in_dim, self.causal.block, *self.size)
        noise = torch.randn(steps, *shape, generator=self.generator, device=device)
        if self.cache.ring is not None:
            self.cache = replace(self.cache, is_full=self.is_full)
        latents: list[Tensor] = []

        def run_draw() -> None:
            latents.append(draw(noise, self.cache))

        def run_decode() -> None:
            for frame in latents[0].unbind(2) if self.decoder is not None else ():
                assert self.decoder is not None
                _, self.decoded = self.decoder.decode(frame, self.decoded, is_fused=self.is_fused)

        def run_commit() -> None:
            self.cache = commit(latents[0], self.cache)

        yield from zip(PARTS, (run_draw, run_decode, run_commit), strict=True)
        self.drawn += self.causal.block

    def go_to(self, frames: int) -> None:
        """Set the clock of a video whose window is full: its next block is that behind so many latent frames.

        What is kept stays, of the shapes that it has at any age.
        """
        assert self.is_full and self.cache.frames is not None, "a window that is not full is of an age"
        self.drawn = frames
        self.cache = replace(self.cache, frames=torch.full_like(self.cache.frames, frames))

    def _functions(self) -> tuple[Draw, Commit]:
        if self.compile == "none" or not self.is_full:
            return self._draw, self._commit
        if self.recorded is None:
            build = compiler_of("cudagraphs", self.generator.device)
            self.recorded = (build(self._draw), build(self._commit))
        return self.recorded

    def _draw(self, noise: Tensor, cache: FrameCache) -> Tensor:
        is_fused = self.is_fused and self.is_full
        given = (self.text, cache, self.causal, noise[1:])
        return generate_block(self.model, noise[0], *given, is_fused=is_fused)

    def _commit(self, latents: Tensor, cache: FrameCache) -> FrameCache:
        is_fused = self.is_fused and self.is_full
        return commit_block(self.model, latents, self.text, cache, self.causal, is_fused=is_fused)


def choose_layout(
    config: VideoShapeConfig, device: torch.device, dtype: torch.dtype
) -> tuple[VideoShapeConfig, dict[str, DecodingCost]]:
    """Measure decoding in each layout, and return the settings with the faster one, if it is to be chosen.

    A layout is missing from the costs where the memory did not suffice.
    """
    size, asked = (config.height // PIXELS, config.width // PIXELS), config.decoder_layout
    names = list(LAYOUTS) if asked == "auto" else [asked]
    costs: dict[str, DecodingCost] = {}
    for name in names:
        try:
            decoder = make_decoder(config.decoder_width, name, device, dtype)
            costs[name] = measure_decoding(decoder, size)
        except torch.OutOfMemoryError:  # a result, as that of a model
            pass
        decoder = None
        free(device)
    fastest = min(costs, key=lambda name: costs[name].streamed_ms, default=names[0])
    config = replace(config, decoder_layout=fastest)
    if fastest in costs and is_compiled(config, device):
        decoder = make_decoder(config.decoder_width, fastest, device, dtype)
        decoder.is_timed = config.cudnn_benchmark
        costs[f"{fastest}, compiled"] = measure_decoding(decoder, size, is_fused=True)
        decoder = None
        free(device)
    return config, costs


def is_compiled(config: VideoShapeConfig, device: torch.device) -> bool:
    """Return whether the decoder is compiled: that of all models alike."""
    return choose_compile(config.compile, device, grows=False, is_video=True).mode == "inductor"


def begin_drawing(
    config: VideoShapeConfig, name: str, device: torch.device, dtype: torch.dtype, num_blocks: int
) -> Drawing:
    """Return a drawing with random weights, and room for so many blocks where all are kept."""
    is_hybrid, has_window = MODELS[name]
    layers = spread_layers(config.shape.num_layers, int(config.share * config.shape.num_layers))
    shape = replace(config.shape, hybrid_layers=layers if is_hybrid else [])
    causal = config.causal if has_window else replace(config.causal, window=None, sink=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = WanTransformer(shape).to(dtype).eval().requires_grad_(False)
    width, layout = config.decoder_width, config.decoder_layout
    decoder = make_decoder(width, layout, device, dtype) if width else None
    text = model.embed_text(torch.zeros(1, 1, shape.text_dim, device=device))
    room = (num_blocks + 1) * causal.block  # one block more is profiled
    cache = FrameCache() if has_window else reserved_cache(model, room, config.tokens_per_frame)
    generator = torch.Generator(device).manual_seed(0)
    size = (config.height // PIXELS, config.width // PIXELS)
    if decoder is not None:
        decoder.is_timed = config.cudnn_benchmark
        decoder.feature_shapes(*size)  # asked for once: seconds that are none of the first block's
    asked = "cudagraphs" if config.compile == "inductor" else config.compile
    mode = choose_compile(asked if has_window else "none", device, grows=not has_window).mode
    given = (model, causal, text, decoder, cache, generator, size, DecoderState())
    return Drawing(*given, mode, is_compiled(config, device))


@torch.inference_mode()
def measure_video(
    config: VideoShapeConfig, name: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[MarkCost], Drawing | None]:
    """Draw the longest video, and note what each of the lengths cost.

    Returns:
        The costs, and the drawing at its end; None where the memory did not suffice.
    """
    steps: list[Step] = []
    lengths = sorted(set(config.frames))  # several may be whole with the same block
    found: list[MarkCost] = []
    drawing = None
    try:
        warm = begin_drawing(config, name, device, dtype, WARM_UP)
        for _ in range(WARM_UP):
            warm.step()
        del warm
        drawing = begin_drawing(config, name, device, dtype, config.num_blocks)
        if device.type == "cuda":  # behind the making of weights, which takes fp32 for a time
            torch.cuda.reset_peak_memory_stats(device)
        begun = time.perf_counter()
        for number in tqdm(range(1, config.num_blocks + 1), desc=name, unit="block"):
            step = Step(drawing.launched, drawing.step())
            if drawing.launched == step.launched:  # what is recorded in a block takes longer than any other
                steps.append(step)
            for frames in (each for each in lengths if config.blocks_of(each) == number):
                seconds = time.perf_counter() - begun
                found.append(_noted(config, frames, seconds, steps, drawing, device))
        if config.late and drawing.is_full:
            found.append(_late(config, drawing, device))
    except torch.OutOfMemoryError:
        drawing = None  # a result: the marks that are missing say how far it came
    missing = lengths[sum(mark.frames in lengths for mark in found) :]
    return [*found, *(MarkCost(frames=frames) for frames in missing)], drawing


def late_over_early(config: VideoShapeConfig, marks: list[MarkCost]) -> float | None:
    """Return the time of a block at `config.late` over that of the first mark whose windows were full.

    Both are launched in the same way; None where one of them is missing.
    """
    full = config.blocks_to_fill + LATE
    late = next((mark for mark in marks if mark.frames == config.late and mark.seconds is None), None)
    if late is None or not late.block_ms:
        return None
    early = (mark for mark in marks if mark.seconds is not None and config.blocks_of(mark.frames) > full)
    first = next((mark for mark in early if mark.launched == late.launched), None)
    return None if first is None else sum(late.block_ms.values()) / sum(first.block_ms.values())


def _late(config: VideoShapeConfig, drawing: Drawing, device: torch.device) -> MarkCost:
    """Draw on from `config.late` displayed frames, and note what a block costs there."""
    drawing.go_to(config.blocks_of(config.late) * config.causal.block)
    drawing.step()  # in which whatever is made once for the new age is made
    steps = [Step(drawing.launched, drawing.step()) for _ in range(LATE)]
    return _noted(config, config.late, None, steps, drawing, device)


def _noted(
    config: VideoShapeConfig,
    frames: int,
    seconds: float | None,
    steps: list[Step],
    drawing: Drawing,
    device: torch.device,
) -> MarkCost:
    launched = steps[-1].launched if steps else drawing.launched
    latest = [step.block_ms for step in steps if step.launched == launched][-LATE:]
    block_ms = {part: sum(step[part] for step in latest) / len(latest) for part in PARTS}
    memory = device_memory(device)
    return MarkCost(
        frames=frames,
        seconds=seconds,
        peak_bytes=memory[1] if memory else None,
        cache_bytes=drawing.cache.num_bytes,
        frames_per_second=1e3 * FRAMES_PER_LATENT * config.causal.block / sum(block_ms.values()),
        block_ms=block_ms,
        launched=launched,
    )


def free(device: torch.device) -> None:
    """Give back what the last model took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
