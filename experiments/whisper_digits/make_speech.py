"""Makes a small speech data set with espeak-ng: spoken digits and commands, in many voices, with noise.

    python experiments/whisper_digits/make_speech.py FOLDER

FOLDER gets 16 kHz mono WAV files, train.jsonl and heldout.jsonl with a line a clip: `audio` (a path relative to the
jsonl), `text`, `voice`. The voices of heldout.jsonl never occur in train.jsonl; neither do the texts of every second
line. A clip depends on --seed, its split and its number only, and on the version of espeak-ng.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.sources.audio import SAMPLE_RATE, read_audio

words = str.split
TRAIN_VOICES = words(
    "m1 m2 m3 m4 m6 m7 f1 f2 f4 croak whisper klatt klatt2 klatt4 Alex Andy Annie Denis Lee Marco anika belinda "
    "boris ed edward gustave iven max norbert paul quincy rob steph travis zac"
)
HELDOUT_VOICES = words("m5 m8 f3 f5 Andrea Michael linda victor")
ACCENTS = words("en-us en-us en-gb en-gb-x-rp en-gb-scotland en-029")
DIGITS = words("zero one two three four five six seven eight nine")
COMBINED = [f"turn {way} the {what}" for way in ("on", "off") for what in words("light radio fan heater lamp")]
COMBINED += [f"{verb} the {what}" for verb in ("open", "close") for what in words("door window gate box")]
COMBINED += [f"{verb} {way}" for verb in words("go turn look") for way in words("left right back up down")]
SIMPLE = ["yes", "no", "stop", "start", "help me", "good morning", "good night", "thank you", "play music", "call home"]
PHRASE_SHARE = 0.25  # of the clips; the others are digits
LENGTHS = [1, 2, 3, 4], [2, 4, 5, 5]  # how many digits, and how often


class Clip(NamedTuple):
    """One file to make, decided before any sound is."""

    path: Path
    text: str
    voice: str
    words_per_minute: int
    pitch: int
    gain: float
    noise: float  # its standard deviation over the speech's peak
    lead_sec: float
    seed: int


def reserved(text: str) -> bool:
    """Whether a text is kept out of training. Its words occur there in other texts."""
    return " " in text and text not in SIMPLE and zlib.crc32(text.encode()) % 6 == 0


def draw_text(rng: random.Random, unseen: bool) -> str:
    while True:
        digits = " ".join(rng.choices(DIGITS, k=rng.choices(*LENGTHS)[0]))
        text = rng.choice(COMBINED + SIMPLE) if rng.random() < PHRASE_SHARE else digits
        if reserved(text) == unseen:
            return text


def plan(folder: Path, split: str, count: int, seed: int) -> list[Clip]:
    """The clips of a split: a pure function of its arguments."""
    clips = []
    for number in range(count):
        rng = random.Random(f"{seed}/{split}/{number}")
        voices, unseen = (TRAIN_VOICES, False) if split == "train" else (HELDOUT_VOICES, number % 2 == 1)
        text, voice = draw_text(rng, unseen), f"{rng.choice(ACCENTS)}+{rng.choice(voices)}"
        path = folder / split / f"{number // 1000:03}" / f"{number:06}.wav"
        gain, noise = 10 ** rng.uniform(-0.7, 0), 10 ** rng.uniform(-3.0, -1.6)  # over 14 dB, over 28 dB
        clips.append(Clip(path, text, voice, rng.randint(140, 215), rng.randint(25, 75), gain, noise,
                          rng.uniform(0.02, 0.12), rng.getrandbits(63)))  # fmt: skip
    return clips


def make(job: tuple[Clip, float]) -> float:
    """Writes a clip of at most so many seconds, spoken faster until it fits. Returns its length in seconds."""
    import soundfile

    clip, most_sec = job
    clip.path.parent.mkdir(parents=True, exist_ok=True)
    speed = clip.words_per_minute
    while True:
        command = ["espeak-ng", "-v", clip.voice, "-s", str(speed), "-p", str(clip.pitch), "-w", str(clip.path)]
        subprocess.run([*command, clip.text], check=True, capture_output=True)
        spoken = read_audio(clip.path)
        loud = np.flatnonzero(np.abs(spoken) > 0.01 * np.abs(spoken).max())
        if not len(loud):
            raise ConfigError(f"espeak-ng says nothing for {clip.text!r} in voice {clip.voice}; update espeak-ng")
        samples = np.pad(spoken[loud[0] : loud[-1] + 1], round(clip.lead_sec * SAMPLE_RATE))
        if len(samples) <= most_sec * SAMPLE_RATE:
            break
        if speed > 400:
            raise ConfigError(f"{clip.text!r} does not fit into {most_sec} seconds; raise --max-sec")
        speed = round(speed * 1.15)
    hiss = np.random.default_rng(clip.seed).normal(size=len(samples)) * clip.noise
    samples = (samples / np.abs(samples).max() + hiss) * 0.9 * clip.gain
    soundfile.write(clip.path, np.clip(samples, -1, 1), SAMPLE_RATE, subtype="PCM_16")
    return len(samples) / SAMPLE_RATE


def check_espeak() -> None:
    if not shutil.which("espeak-ng"):
        raise ConfigError("espeak-ng is not installed: apt-get install espeak-ng")
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    known = {word.removeprefix("!v/") for word in listed.split() if word.startswith("!v/")}
    if missing := [voice for voice in TRAIN_VOICES + HELDOUT_VOICES if voice not in known]:
        raise ConfigError(f"espeak-ng has no voice variant {', '.join(missing)}; version 1.51 or newer has them")


def main(arguments: argparse.Namespace) -> None:
    check_espeak()
    counts = {"train": arguments.train, "heldout": arguments.heldout}
    splits = {split: plan(arguments.folder, split, count, arguments.seed) for split, count in counts.items()}
    clips, seconds, start = [clip for split in splits.values() for clip in split], 0.0, time.monotonic()
    with multiprocessing.Pool(arguments.workers) as pool:
        lengths = pool.imap_unordered(make, [(clip, arguments.max_sec) for clip in clips], chunksize=8)
        for done, length in enumerate(lengths, 1):
            seconds += length
            if done % 500 == 0 or done == len(clips):
                minutes, took = seconds / 60, time.monotonic() - start
                print(f"{done}/{len(clips)} clips, {minutes:.1f} minutes of speech, {took:.0f} s", flush=True)
    for split, made in splits.items():  # last, so that an interrupted run leaves no list
        with open(arguments.folder / f"{split}.jsonl", "w") as out:
            for clip in made:
                path = clip.path.relative_to(arguments.folder).as_posix()
                out.write(json.dumps({"audio": path, "text": clip.text, "voice": clip.voice}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the data set goes; made where it is missing")
    parser.add_argument("--train", type=int, default=6000, help="clips to train on (%(default)s)")
    parser.add_argument("--heldout", type=int, default=400, help="clips kept out (%(default)s)")
    parser.add_argument("--max-sec", type=float, default=2.6, help="longest clip; speech is made to fit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every clip (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    try:
        main(parser.parse_args())
    except ConfigError as error:
        parser.exit(1, f"make_speech: {error}\n")
