"""The packed model and its loss against the paper's equations, written out densely in fp64."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatv.config import LATENT_CHANNELS, load_config
from megatv.data.packing import pack
from megatv.data.sequence import build_sequence
from megatv.data.tokenizer import load_tokenizer
from megatv.model.mot import MoT, Output
from megatv.objective.pretrain import chunk_errors, pretrain_loss, weighted
from megatv.parallel.layers import Layers
from megatv.types import IGNORE, Caption, Example, LossSum

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
TOKENIZER = load_tokenizer("toy_world")
LAYERS, HEADS, KV, WIDTH = 2, 4, 2, 32


def small_config(mode="tv2tv", tied=False, patch="unet"):
    """Two examples of 13 chunks of 2 x 4 latent pixels, so P = 2, in one row."""
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=32, height=16),
        sequence=dataclasses.replace(
            TOY.sequence, mode=mode, examples_per_row=2, context_tokens=2 * (13 * 4 + 90), clean_flip=0.5
        ),
        model=dataclasses.replace(
            TOY.model,
            layers=LAYERS,
            width=WIDTH,
            ffn=48,
            heads=HEADS,
            kv_heads=KV,
            vocab=TOKENIZER.vocab_size,
            tied_embeddings=tied,
            unet_channels=(16, 32),
            patch=patch,
        ),
    )


def examples(config):
    """A clip that ends after all its 13 chunks, and one cut after 4 of them; words in places."""
    rng = np.random.default_rng(0)

    def example(name, valid, ends, captions):
        shape = (config.latents, LATENT_CHANNELS, config.latent_height, config.latent_width)
        spoken = tuple(Caption(seconds, text) for seconds, text in captions)
        return Example(name, rng.standard_normal(shape, np.float32), spoken, "a game", "", valid, ends)

    long = example("long", 13, True, [(0.0, "(w). 2, 0, 1, 0."), (0.0625, "go"), (1.5, "(.). 0, 0, 0, 0.")])
    return [long, example("short", 4, False, [(0.3, "(s). -2, 0, 0, 1.")])]


def random_model(config):
    """Every weight random, so that no gradient is zero by initialisation."""
    torch.manual_seed(0)
    model = MoT(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


class Paper:
    """TV2TV equations 2 to 16 for one sequence, row by row in order of time; `w` are weights by name."""

    def __init__(self, w):
        self.w = w

    def losses(self, sequence):
        """(text_sum, video_sum) of a Sequence, of which only words, latents and times are used."""
        rows, hidden, position, maps = [], [], 0, []
        for index, token in enumerate(sequence.text_ids.tolist()):
            rows.append(("text", index, position))
            hidden.append(self.w["embed.text.weight"][token])
            position += 1
            if token != TOKENIZER.bof:
                continue
            chunk = len(maps)
            for copy in ("noisy", "clean"):  # eq. 1: a noisy chunk followed at once by its clean one
                latents = torch.from_numpy(getattr(sequence, copy)[chunk]).double()
                tokens, skips = self.down(latents, float(getattr(sequence, f"{copy}_t")[chunk]))
                for place, row in enumerate(tokens):
                    rows.append((copy, chunk, position + place))
                    hidden.append(row)
                if copy == "noisy":
                    maps.append(skips)
            position += len(tokens)
        out = self.trunk(rows, torch.stack(hidden))
        text = [row for row, (kind, _, _) in enumerate(rows) if kind == "text"]
        text_sum = self.cross_entropy(sequence.text_ids.tolist(), out[text])
        video_sum = torch.zeros((), dtype=torch.float64)
        for chunk, skips in enumerate(maps):
            noisy = [row for row, (kind, c, _) in enumerate(rows) if (kind, c) == ("noisy", chunk)]
            velocity = self.up(self.norm("head.video_norm", out[noisy]), skips)
            video_sum = video_sum + (velocity - torch.from_numpy(sequence.velocity[chunk])).square().sum()
        return text_sum, video_sum

    def cross_entropy(self, ids, hidden):
        """Eq. 14; no loss after BOF, where the chunk begins, nor where EOF follows, which is appended."""
        matrix = self.w.get("head.text.weight", self.w["embed.text.weight"])
        total = torch.zeros((), dtype=torch.float64)
        for row, target in enumerate(ids[1:]):
            if target != TOKENIZER.eof:
                logits = matrix @ self.norm("head.text_norm", hidden[row])
                total = total + torch.logsumexp(logits, 0) - logits[target]
        return total

    def trunk(self, rows, x):
        """Eq. 5 to 10, pre-norm with residuals."""
        side = ["text" if kind == "text" else "video" for kind, _, _ in rows]
        sees = torch.tensor([[self.visible(rows, q, k) for k in range(len(rows))] for q in range(len(rows))])
        for layer in range(LAYERS):
            name = [f"blocks.{layer}.{s}." for s in side]
            h = torch.stack([self.norm(n + "attention_norm", r) for n, r in zip(name, x, strict=True)])
            q, k, v = (
                torch.stack([self.w[f"{n}{m}.weight"] @ r for n, r in zip(name, h, strict=True)])
                for m in ("wq", "wk", "wv")
            )
            heads = []
            size = WIDTH // HEADS
            for head in range(HEADS):
                own, shared = head * size, head // (HEADS // KV) * size
                turned_q = self.turn(q[:, own : own + size], rows)
                turned_k = self.turn(k[:, shared : shared + size], rows)
                scores = (turned_q @ turned_k.conj().T).real / math.sqrt(size)
                scores = scores.masked_fill(~sees, -math.inf)
                heads.append(scores.softmax(1) @ v[:, shared : shared + size])
            attended = torch.cat(heads, 1)
            x = x + torch.stack([self.w[n + "wo.weight"] @ r for n, r in zip(name, attended, strict=True)])
            x = x + torch.stack([self.ffn(n, r) for n, r in zip(name, x, strict=True)])
        return x

    @staticmethod
    def visible(rows, q, k):
        """Text causal, chunks block-causal, and a noisy token is seen by its own chunk's noisy copy only."""
        if rows[q][:2] == rows[k][:2]:
            return True
        return k < q and rows[k][0] != "noisy"

    @staticmethod
    def turn(x, rows):
        """Global 1-D RoPE: pair (i, i + E/2) as a complex number, turned by position * theta^(-2i/E)."""
        half = x.shape[1] // 2
        rate = TOY.model.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.tensor([[p] for _, _, p in rows], dtype=torch.float64) * rate
        return torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)

    def norm(self, name, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[name + ".weight"]

    def ffn(self, name, x):
        h = self.norm(name + "ffn_norm", x)
        gate, up = self.w[name + "gate.weight"] @ h, self.w[name + "up.weight"] @ h
        return self.w[name + "down.weight"] @ (gate * torch.sigmoid(gate) * up)

    def down(self, x, t):
        """Eq. 4 for one copy of one chunk: [C, h, w] -> tokens [P, D], (time, maps)."""
        features = [f(1000 * t * 10_000 ** (-i / 128)) for f in (math.cos, math.sin) for i in range(128)]
        time = self.linear("embed.down.time.0", torch.tensor(features, dtype=torch.float64))
        time = F.silu(self.linear("embed.down.time.2", F.silu(time)))
        x = self.conv("embed.down.stem", x[None])
        maps = [x]
        for block in range(2):
            maps.append(x := self.res(f"embed.down.full_blocks.{block}", x, time))
        maps.append(x := self.conv("embed.down.downsample", x, stride=2))
        for block in range(2):
            maps.append(x := self.res(f"embed.down.half_blocks.{block}", x, time))
        tokens = self.conv("embed.down.to_tokens", x)[0].flatten(1).T
        return tokens + self.w["embed.position"], (time, maps)

    def up(self, tokens, skips):
        """Eq. 13: tokens [P, D] and what the down path made of the noisy copy -> velocity [C, h, w]."""
        time, maps = skips
        maps = list(maps)
        x = self.conv("head.up.from_tokens", tokens.T.reshape(1, WIDTH, *maps[-1].shape[2:]))
        for block in range(3):
            x = self.res(f"head.up.half_blocks.{block}", x, time, maps.pop())
        pixels = torch.einsum("nihw,ioab->nohawb", x, self.w["head.up.upsample.weight"])
        x = pixels.flatten(4).flatten(2, 3) + self.w["head.up.upsample.bias"][:, None, None]
        for block in range(3):
            x = self.res(f"head.up.full_blocks.{block}", x, time, maps.pop())
        return self.conv("head.up.to_velocity", F.silu(self.group_norm("head.up.norm", x)))[0]

    def res(self, name, x, time, *skip):
        h = self.conv(name + ".conv1", F.silu(self.group_norm(name + ".norm1", torch.cat([x, *skip], 1))))
        h = h + self.linear(name + ".time", time)[:, None, None]
        h = self.conv(name + ".conv2", F.silu(self.group_norm(name + ".norm2", h)))
        return x + h

    def conv(self, name, x, stride=1):
        weight = self.w[name + ".weight"]
        return F.conv2d(x, weight, self.w[name + ".bias"], stride=stride, padding=weight.shape[-1] // 2)

    def group_norm(self, name, x):
        """Groups of 16 channels at these widths."""
        groups = x.reshape(x.shape[1] // 16, -1)
        mean, variance = groups.mean(1, keepdim=True), groups.var(1, correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        return x * self.w[name + ".weight"][:, None, None] + self.w[name + ".bias"][:, None, None]

    def linear(self, name, x):
        return self.w[name + ".weight"] @ x + self.w[name + ".bias"]


@pytest.mark.parametrize(("mode", "tied"), [("tv2tv", False), ("think2v", True)])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_loss_and_every_gradient_equal_the_papers_equations(mode, tied, backend):
    config = dataclasses.replace(small_config(mode, tied), attention=backend)
    sequences = [build_sequence(e, TOKENIZER, config, seed=0, epoch=0) for e in examples(config)]
    assert len(sequences[0].text_ids) != len(sequences[1].text_ids)
    assert any((s.clean_t[1:] != 1).any() for s in sequences), "some clean copies must be flipped"
    batch = pack(sequences, config)
    batch.clean_t, batch.noisy_t = batch.clean_t.double(), batch.noisy_t.double()
    model = random_model(config)
    found = pretrain_loss(model(batch), batch, Layers())
    weighted(found, batch.counts(), config.objective).backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    sums = [Paper(weights).losses(s) for s in sequences]
    text_sum, video_sum = (sum(pair) for pair in zip(*sums, strict=True))
    text_count = sum(len(s.text_ids) - 1 - len(s.clean) for s in sequences)  # all but the last and BOFs
    video_count = (13 + 4) * 16 * 2 * 4
    loss = config.objective.text_weight * text_sum / text_count
    (loss + config.objective.video_weight * video_sum / video_count).backward()

    assert (found.text_count, found.video_count) == (text_count, video_count)
    torch.testing.assert_close(found.text_sum, text_sum, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.video_sum, video_sum, rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item(), msg=name
        )


def batch_and_output(config):
    sequences = [build_sequence(e, TOKENIZER, config, seed=0, epoch=0) for e in examples(config)]
    batch = pack(sequences, config)
    torch.manual_seed(1)
    logits = torch.randn(len(batch.text_ids), config.model.vocab, requires_grad=True)
    return batch, Output(logits, torch.randn(batch.velocity.shape, requires_grad=True))


def test_only_rows_with_a_loss_count_and_get_gradient():
    config = small_config()
    batch, output = batch_and_output(config)
    batch.chunk_loss[0] = False
    loss = pretrain_loss(output, batch, Layers())
    (loss.text_sum + loss.video_sum).backward()
    assert output.text_logits.grad.abs().sum(1).gt(0).equal(batch.text_targets != IGNORE)
    assert output.velocity.grad.flatten(1).abs().sum(1).gt(0).equal(batch.chunk_loss)
    errors = chunk_errors(output, batch)
    torch.testing.assert_close(loss.video_sum, errors[batch.chunk_loss].sum())
    assert loss.video_count == batch.chunk_loss.sum() * 16 * 2 * 4


def test_a_perfect_velocity_and_certain_words_cost_nothing():
    config = small_config()
    batch, _ = batch_and_output(config)
    logits = 1e4 * F.one_hot(batch.text_targets.clamp(min=0), config.model.vocab).float()
    loss = pretrain_loss(Output(logits, batch.velocity), batch, Layers())
    assert loss.text_sum == 0
    assert loss.video_sum == 0


def test_half_precision_outputs_are_summed_in_fp32():
    batch, output = batch_and_output(small_config())
    half = Output(output.text_logits.bfloat16(), output.velocity.bfloat16())
    loss = pretrain_loss(half, batch, Layers())
    assert loss.text_sum.dtype == loss.video_sum.dtype == torch.float32
    exact = (half.velocity.double() - batch.velocity.double()).square().flatten(1).sum(1)
    torch.testing.assert_close(loss.video_sum.double(), exact[batch.chunk_loss].sum(), rtol=1e-6, atol=0)


def test_the_step_is_a_sum_over_a_global_count_however_it_is_cut():
    config = small_config()
    two = dataclasses.replace(
        config, sequence=dataclasses.replace(config.sequence, examples_per_row=1, context_tokens=142)
    )
    model = random_model(config)
    sequences = [build_sequence(e, TOKENIZER, config, seed=0, epoch=0) for e in examples(config)]
    whole = pretrain_loss(model(pack(sequences, config)), pack(sequences, config), Layers())
    parts = [pack([s], two) for s in sequences]
    losses = [pretrain_loss(model(batch), batch, Layers()) for batch in parts]
    total = LossSum.add(losses)
    for field in dataclasses.fields(LossSum):
        torch.testing.assert_close(getattr(total, field.name), getattr(whole, field.name))
    counts = torch.stack([batch.counts() for batch in parts]).sum(0)
    together = weighted(whole, counts, config.objective)
    torch.testing.assert_close(sum(weighted(loss, counts, config.objective) for loss in losses), together)


def test_weights_and_empty_modalities():
    objective = dataclasses.replace(TOY.objective, text_weight=0.25, video_weight=2.0)
    scalar = torch.tensor
    loss = LossSum(scalar(12.0), scalar(30.0), scalar(3.0), scalar(10.0))
    assert weighted(loss, torch.tensor([6.0, 20.0], dtype=torch.float64), objective) == 0.5 + 3.0
    nothing = LossSum(scalar(0.0), scalar(30.0), scalar(0.0), scalar(10.0))
    assert weighted(nothing, torch.tensor([0.0, 20.0], dtype=torch.float64), objective) == 3.0


def test_a_chunk_without_a_loss_may_be_anything():
    batch, output = batch_and_output(small_config())
    batch.chunk_loss[0] = False
    wanted = pretrain_loss(output, batch, Layers()).video_sum
    velocity = output.velocity.detach().clone()
    velocity[0] = torch.inf
    assert pretrain_loss(Output(output.text_logits, velocity), batch, Layers()).video_sum == wanted
