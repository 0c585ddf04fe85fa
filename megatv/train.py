"""The run, to be read aloud: build, resume, step, log, validate, save, stop."""

from __future__ import annotations

import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import megatv
from megatv.checkpoint import store
from megatv.checkpoint.load import check_shapes
from megatv.checkpoint.meta import read_meta
from megatv.checkpoint.origin import origin, require_origin
from megatv.checkpoint.rundir import open_run
from megatv.clock import Clock
from megatv.config import Config, config_to_dict
from megatv.data.loader import Loader
from megatv.data.remote import open_shards
from megatv.data.shards import Encode
from megatv.data.tokenizer import load_tokenizer
from megatv.engine import MODEL, Engine, StepResult
from megatv.feed import Feed
from megatv.health import GarbageTogether, SkippedSteps, StopSignal
from megatv.log import RunLog, plot_losses, say, spare, step_line
from megatv.model.codec import clip_encoder, load_codec
from megatv.model.cost import meta_model
from megatv.optim import learning_rate
from megatv.parallel.mesh import Mesh, grid, initialize_distributed
from megatv.profiler import Profiler
from megatv.saver import Saver
from megatv.types import Batch
from megatv.watchdog import Watchdog


def train(config: Config, resume: str, device: torch.device, *, trust_codec: bool = False) -> None:
    """Train `config` to its last step, or until a stop signal. resume: `auto`, `none` or a checkpoint.

    trust_codec  whether a TorchScript codec may run (see `load_codec`)
    Raises ValueError (the same one on every rank) for anything that the user can put right.
    """
    # before ranks connect: the first to leave for an impossible grid would break what the others still build
    grid(int(os.environ["WORLD_SIZE"]), config.parallel)
    initialize_distributed(device)
    try:
        mesh = Mesh(config.parallel)
        Trainer(config, mesh, device, resume, trust_codec=trust_codec).run()
        dist.barrier()  # a rank that leaves early takes the others' connections down with it
    finally:
        dist.destroy_process_group()


class Trainer:
    """One run on one process: its data, its engine, its record."""

    def __init__(
        self, config: Config, mesh: Mesh, device: torch.device, resume: str, *, trust_codec: bool = False
    ) -> None:
        self.config, self.mesh, self.device, self.trust_codec = config, mesh, device, trust_codec
        self._started = time.time()
        self.run_dir = Path(config.run.dir)
        self._encoder: Encode | None = None
        with mesh.agreement():
            self._open_data()
        with mesh.agreement():
            self.opened = open_run(config, resume) if mesh.rank == 0 else None
        checkpoint, meta = self._agree_on_checkpoint()
        self.start = self.done = meta["step"]
        self.skipped = SkippedSteps(config.health, meta)
        self.engine = Engine(config, mesh, device, checkpoint, meta["updates"])
        self.saver = Saver(config, mesh, self.engine)
        self._announce(checkpoint)

    def run(self) -> None:
        """Step until the last step or a stop signal; leave a checkpoint of where the run is."""
        config = self.config
        record = self._open_log()
        profiler = Profiler(config.profile, self.run_dir, self.mesh)
        watchdog = Watchdog(config.health.watchdog_seconds, self.run_dir, self.mesh)
        with StopSignal() as signal, GarbageTogether() as garbage, profiler, watchdog, self.saver:
            self.feed = Feed(self.loader, self.mesh, self.device, self.done)
            examples = self.loader.examples_per_step
            clock = Clock(config, self.done, examples, self.mesh.world, self.device)
            while self.done < config.run.steps:
                watchdog.tick(self.done)
                profiler.before(self.done + 1)
                micro_batches = self.feed.next()
                lr = learning_rate(self.done, config.run.steps, config.optim)
                result = self.engine.step(micro_batches, lr, lambda: signal.requested, self.skipped.limit)
                self.done += 1
                self._log_step(record, clock, result, lr, micro_batches)
                profiler.after(self.done)
                garbage.after(self.done)
                if _due(self.done, config.log.val_every):
                    self._validate(record)
                self.saver.poll()
                last = self.done == config.run.steps
                if result.stop or last or _due(self.done, config.checkpoint.every):
                    self._save()
                if _due(self.done, config.log.preview_every):
                    self._preview()
                clock.start()
                if result.stop:
                    self.saver.finish()
                    say(f"stopped by a signal after step {self.done}; --resume auto goes on from here")
                    break
        if record is not None:
            record.close()
            with spare("the loss curves are not drawn"):
                say(f"losses drawn in {plot_losses(self.run_dir)}")

    def _open_data(self) -> None:
        config, mesh = self.config, self.mesh
        config.accumulation(mesh.dp)  # refuses a world that cannot share the batch
        self.tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
        self.shards = open_shards(config.data.train, config.data, self._clip_encoder, device=self.device)
        self.origin = origin(self.shards, config.codec)
        place: dict[str, Any] = {"dp_rank": mesh.dp_rank, "dp_size": mesh.dp}
        pin = self.device.type == "cuda"
        self.loader = Loader(self.shards, self.tokenizer, config, **place, pin=pin)
        self.loader.try_out()
        self.val_batches: list[Batch] = []
        if config.log.val_every:
            assert config.data.val is not None
            val = open_shards(config.data.val, config.data, self._clip_encoder, device=self.device)
            if val.stats.fingerprint() != self.shards.stats.fingerprint():
                raise ValueError(
                    f"{val.path}: is normalised with other latent statistics than {self.shards.path}, so "
                    "held-out losses would mean nothing; make it with tools/make_shards.py --stats"
                )
            held_out = Loader(val, self.tokenizer, config, **place, train=False)
            self.val_batches = held_out.validation(config.log.val_rows)
        if config.log.preview_every and mesh.rank == 0:
            from megatv.sample.preview import preview_codec

            preview_codec(config.codec, str(self.device), self.trust_codec)  # now, not at the first preview

    def _clip_encoder(self) -> Encode:
        """The config's codec, for shards that hold clips; one for both splits."""
        if self._encoder is None:
            codec = load_codec(self.config.codec, self.device, trust=self.trust_codec)
            self._encoder = clip_encoder(codec)
        return self._encoder

    def _agree_on_checkpoint(self) -> tuple[Path | None, dict[str, Any]]:
        """Rank 0's choice, on every rank, with its meta record (zeros for a fresh run)."""
        chosen = [self.opened.checkpoint if self.opened else None]
        dist.broadcast_object_list(chosen, device=self.device)
        if chosen[0] is None:
            return None, {"step": 0, "skipped": 0, "updates": 0}
        with self.mesh.agreement():
            check_shapes(store.Tensors(chosen[0], MODEL), meta_model(self.config))
            meta = read_meta(chosen[0])
            require_origin(meta, self.origin, self.config.data.train, chosen[0])
        return chosen[0], meta

    def _announce(self, checkpoint: Path | None) -> None:
        mesh, config = self.mesh, self.config
        for note in self.opened.notes if self.opened else ():
            say(note)
        sizes = ", ".join(f"{k} {v}" for k, v in config.derived().items())
        weights = sum(math.prod(s) for s in self.engine.shapes.values())
        say(f"{config.run.dir}: {weights:,} weights on this stage; {sizes}")
        say(
            f"grid tp {mesh.tp} x pp {mesh.pp} x dp {mesh.dp} x cp {mesh.cp}, zero {config.parallel.zero}, "
            f"{config.precision} on {self.device.type}; "
            + (f"resumed from {checkpoint}" if checkpoint else "fresh start")
        )

    def _open_log(self) -> RunLog | None:
        if self.mesh.rank != 0:
            return None
        config = self.config
        return RunLog(
            self.run_dir,
            resume_step=self.start,
            total_steps=config.run.steps,
            started=self._started,
            wandb_config=config_to_dict(config) if config.log.wandb else None,
        )

    def _log_step(
        self, record: RunLog | None, clock: Clock, result: StepResult, lr: float, batches: list[Batch]
    ) -> None:
        ids = [] if result.applied else self.engine.suspects(batches)
        message = self.skipped.count(self.done, result.grad_norm, result.applied, ids)
        if message is not None:
            say(message)
        if record is None:
            return
        text, video = (s / max(c, 1.0) for s, c in zip(result.sums, result.counts, strict=True))
        weights = self.config.objective
        values = {
            "step": self.done,
            "loss": weights.text_weight * text + weights.video_weight * video,
            "text_loss": text,
            "video_loss": video,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "skipped": self.skipped.total,
            "bad_samples": len(self.feed.bad),
            "memory_gib": _peak_memory(self.device),
            **clock.finish_step(batches, self.feed.waited_seconds),
        }
        values |= record.goodput.add(values)
        written = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        if not result.applied:
            written |= {"skip_reason": result.skip_reason, "skipped_samples": ids}
        record.write(written)
        record.advance(self.done)
        if _due(self.done, self.config.log.every) or self.done == self.config.run.steps:
            say(step_line({**values, **clock.window()}, self.config.run.steps, clock.seconds_left()))

    def _validate(self, record: RunLog | None) -> None:
        """Losses on the held-out rows, with the trained weights and, if there is one, their average."""
        values = {f"val_{k}": v for k, v in self.engine.evaluate(self.val_batches).items()}
        if self.config.optim.ema is not None:
            with self.engine.averaged_weights():
                averaged = self.engine.evaluate(self.val_batches)
            values |= {f"val_ema_{k}": v for k, v in averaged.items()}
        if record is None:
            return
        record.write({"step": self.done, **values})
        totals = {k: v for k, v in values.items() if k.endswith("_loss") and v is not None}
        say(f"step {self.done}  " + "  ".join(f"{k} {v:.4f}" for k, v in totals.items()))

    def _save(self) -> None:
        """Begin to write a checkpoint of where the run is."""
        meta = {
            "step": self.done,
            "updates": self.done - self.skipped.total,
            **self.skipped.state(),
            "config": config_to_dict(self.config),
            **self.origin,
            "tokenizer": {"path": self.config.tokenizer.path, "vocab_size": self.tokenizer.vocab_size},
            "megatv": megatv.__version__,
        }
        self.saver.save(self.done, meta)

    def _preview(self) -> None:
        """A contact sheet from the present (averaged, if there is an average) weights; rank 0 samples it."""
        if self.config.optim.ema is None:
            self._sample_preview()
        else:
            with self.engine.averaged_weights():
                self._sample_preview()

    def _sample_preview(self) -> None:
        if self.mesh.rank != 0:
            return
        from megatv.sample.preview import preview

        out = self.run_dir / f"preview_{self.done:08d}.png"
        model = self.engine.model.eval()
        stats, trust = self.shards.stats, self.trust_codec
        with spare("no preview"):
            preview(model, self.config, self.tokenizer, stats, self.shards, out, self.done, trust_codec=trust)
            say(f"step {self.done}  preview in {out}")
        model.train()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _peak_memory(device: torch.device) -> float:
    """GiB: the accelerator's peak allocation, or the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
