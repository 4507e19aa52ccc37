"""Trains the two models of these guests, and writes the tables that their sources include.

  tumours.py tables [DIR]     DIR/c/tumours.h and DIR/rust/tumours.rs [default: beside this file]
  tumours.py labels           the holdout's labels as item,label: what its custodian registers
  tumours.py predictions      each model's prediction for each item, as item,three,two

The data and the split are those of `evidenceos demo`: rows in the order of a hash of their number, the first
129 are public, the other 440 are the holdout. No label of the holdout gets into a table.
"""

import csv
import hashlib
import sys
from pathlib import Path
from statistics import mean, pstdev

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "breast-cancer-wisconsin.csv"
PUBLIC_ROWS = 129
# Measurements that are large where a tumour is malignant, the least telling one first: the second model leaves it out.
FEATURES = ["worst_texture", "worst_perimeter", "worst_concave_points"]


def split():
    """Public rows and the holdout's rows, each as (number, measurements, label)."""
    with open(DATA, newline="") as file:
        table = list(csv.DictReader(file))
    rows = [(n, [float(row[name]) for name in FEATURES], int(row["benign"])) for n, row in enumerate(table)]
    rows.sort(key=lambda row: hashlib.sha256(b"evidenceos/demo/split/v1" + row[0].to_bytes(8, "big")).digest())
    return rows[:PUBLIC_ROWS], rows[PUBLIC_ROWS:]


def train(rows):
    """The mean of each class, and how far each measurement spreads, in five digits: the guests get no more."""
    five = lambda values: [float(f"{value:.5g}") for value in values]
    centre = lambda label: five(map(mean, zip(*(x for _, x, y in rows if y == label))))
    return centre(1), centre(0), five(map(pstdev, zip(*(x for _, x, _ in rows))))


def predict(model, x, features):
    """1 if the benign centre is nearer, by these measurements."""
    benign, malignant, spread = model
    distance = lambda centre: sum(((x[f] - centre[f]) / spread[f]) ** 2 for f in features)
    return int(distance(benign) < distance(malignant))


def c(model, holdout):
    row = lambda values: "{" + ", ".join(f"{value}f" for value in values) + "}"
    named = zip(("benign", "malignant", "spread"), model)
    return "\n".join([
        "/* Written by ../tumours.py: the model, and the measurements of the holdout's items in its order. */",
        f"enum {{ ITEMS = {len(holdout)}, FEATURES = {len(FEATURES)} }};",
        *(f"static const float {name}[FEATURES] = {row(values)};" for name, values in named),
        "static const float tumours[ITEMS][FEATURES] = {",
        *(f"    {row(x)}," for _, x, _ in holdout),
        "};\n",
    ])


def rust(model, holdout):
    named = zip(("BENIGN", "MALIGNANT", "SPREAD"), model)
    return "\n".join([
        "// Written by ../tumours.py: the model, and the measurements of the holdout's items in its order.",
        f"pub const ITEMS: usize = {len(holdout)};",
        f"pub const FEATURES: usize = {len(FEATURES)};",
        *(f"pub static {name}: [f32; FEATURES] = {values};" for name, values in named),
        "pub static TUMOURS: [[f32; FEATURES]; ITEMS] = [",
        *(f"    {x}," for _, x, _ in holdout),
        "];\n",
    ])


def main(what="", to=HERE):
    public, holdout = split()
    model = train(public)
    if what == "tables":
        for path, text in (("c/tumours.h", c(model, holdout)), ("rust/tumours.rs", rust(model, holdout))):
            path = Path(to) / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    elif what == "labels":
        print("item,label")
        for number, _, label in holdout:
            print(f"tumour-{number},{label}")
    elif what == "predictions":
        print("item,three,two")
        for number, x, _ in holdout:
            print(f"tumour-{number},{predict(model, x, (0, 1, 2))},{predict(model, x, (1, 2))}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:3])
