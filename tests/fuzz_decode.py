"""Coverage-guided fuzzing of `app.imaging.decode` by atheris: `make fuzz-decode`.

It begins with the small pictures of tests/mutations.py, and with what former runs kept in runs/fuzz-decode/corpus. A
finding (an error that is no ServiceError, 5 seconds, or 2 GB) ends it with a status other than 0 and is written beside
the corpus; make a regression test of it.
"""

import argparse
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

MAX_PIXELS = 1 << 20
MAX_BYTES = 1 << 16
FOLDER = Path("runs/fuzz-decode")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="0 takes another one each time, and prints it")
    arguments = parser.parse_args()
    if find_spec("atheris") is None:
        sys.exit("atheris is missing (it has no wheel for every Python): pip install -c constraints.txt -e '.[fuzz]'")
    import atheris

    rooms = ["PIL", "app.imaging", "model.pictures.codec", "model.pictures.plain_png", "model.transforms"]
    with atheris.instrument_imports(include=rooms):
        from app.errors import ServiceError
        from app.imaging import Decoder, decode
        from model.pictures.codec import open_picture, picture_pixels
        from model.pictures.plain_png import read_plain_png
        from tests.conftest import encode, noise
        from tests.mutations import pictures

    Decoder(32, MAX_PIXELS, threads=1)  # sets the filters of Pillow's warnings, as in the service

    def decode_one(data):
        with suppress(ServiceError):
            pixels = decode(data, 32, MAX_PIXELS)
            assert pixels.shape == (3, 32, 32)
            if read_plain_png(data, 32) is not None:
                assert (pixels == picture_pixels(open_picture(data, MAX_PIXELS), 32)).all()

    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, (_, file) in enumerate(pictures()):
        (corpus / f"picture-{number}").write_bytes(file)
    (corpus / "plain").write_bytes(encode(noise()))
    limits = [f"-max_total_time={arguments.seconds}", f"-max_len={MAX_BYTES}", "-timeout=5", "-rss_limit_mb=2048"]
    output = [f"-artifact_prefix={FOLDER}/", f"-seed={arguments.seed}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *output, str(corpus)], decode_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
