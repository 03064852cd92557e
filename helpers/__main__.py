"""python -m helpers                          look at this machine
python -m helpers PICTURE... "QUESTION"     ask about one or more pictures
"""

import argparse
import os
import signal
import sys

INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = _Parser(
        prog="python -m helpers",
        description="Ask Phi-3-vision about pictures. Without arguments: check this machine.",
    )
    parser.add_argument("inputs", nargs="*", metavar="PICTURE... QUESTION", help="paths or URLs, then the question")
    parser.add_argument("--checkpoint", help="folder or hub name (default: PHI3_VISION_CHECKPOINT, or the bundled one)")
    parser.add_argument("--max-new-tokens", type=int, default=1000, help="longest answer, in tokens (default: 1000)")
    options = parser.parse_intermixed_args(arguments)

    from . import doctor, import_error

    if hasattr(sys.stdout, "reconfigure"):  # an object put in its place may lack it
        sys.stdout.reconfigure(errors="replace")  # on Windows, the encoding of a file may lack a character
    if import_error or not options.inputs:
        report = doctor(options.checkpoint)
        print(report)
        return 0 if report.ok else 1
    *pictures, question = options.inputs
    if not pictures:
        parser.error('one argument is not enough; give PICTURE and "QUESTION"')
    if os.path.isfile(question):
        parser.error(f'the last argument, {question}, is a file; put "QUESTION" after the pictures')
    try:
        _answer(pictures, question, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the other end of the pipe, as in `| head -3`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        unquoted = len(pictures) > 1 and not set("./\\") & set(pictures[-1]) and not os.path.exists(pictures[-1])
        advice = " Is the question in quotes?" if unquoted else ""
        print(f"{parser.prog}: {' '.join(str(error).split())}{advice}", file=sys.stderr)
        return 2
    return 0


def _answer(pictures: list[str], question: str, options: argparse.Namespace) -> None:
    from . import load_image, load_model_and_processor, stream

    images = [load_image(picture) for picture in pictures]  # a wrong path shows before the model loads
    model, processor = load_model_and_processor(options.checkpoint)
    pieces = stream(model, processor, question, images, max_new_tokens=options.max_new_tokens)
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print(flush=True)
            print(end.value.cost(), file=sys.stderr)  # a pipe or a file gets the answer alone
            return


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED and os.name == "posix":
        # A shell stops its loop only if the program in it was ended by the signal itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(code)
