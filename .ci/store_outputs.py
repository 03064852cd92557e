"""Runs notebooks and stores their outputs as the tests want them: in order, without times, a stream's pieces joined.

    python .ci/store_outputs.py notebooks/02_image_analysis.ipynb ...

On a machine that does nothing else, with the network: 01_setup shows what the doctor says, and 09_speed what it timed.
Look at `git diff` before you commit: an answer that has changed may need another text below it.
"""

import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def joined(outputs: list) -> list:
    """Outputs in which neighbours of the same stream are one."""
    parts = []
    for output in outputs:
        if parts and output.output_type == "stream" and parts[-1].get("name") == output.name:
            parts[-1].text += output.text
        else:
            parts.append(output)
    return parts


for file in map(Path, sys.argv[1:]):
    metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
    notebook = nbformat.read(file, as_version=4)
    here = {"metadata": {"path": str(file.parent)}}
    NotebookClient(notebook, record_timing=False, store_widget_state=False, resources=here).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)  # times, which JupyterLab may have stored
            cell.outputs = joined(cell.outputs)
    stored = json.loads(nbformat.writes(notebook)) | {"metadata": metadata}  # not this kernel's version
    text = json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")
    print(file, "stored")
