"""The list of known survivors, and its comparison with a run."""

import json
from pathlib import Path

FILE = Path(__file__).with_name("survivors.json")
Entry = dict[str, str | None]


def judge(results: list[tuple[Entry, bool]], *, write: bool = False, file: Path = FILE) -> int:
    """Compares the survivors of a run with those that are known.

    Args:
        results: mutants (module, line and mutation), each with whether a test killed it.
        write: update the file: new survivors are added without a reason, and killed ones are
            removed.

    Returns:
        The exit code: 1 if a survivor is new and the file is not written.
    """
    known = {_key(entry): entry for entry in json.loads(file.read_text(encoding="utf-8"))}
    killed = {_key(mutant) for mutant, was_killed in results if was_killed}
    survivors = [mutant for mutant, was_killed in results if not was_killed]
    new = [mutant for mutant in survivors if _key(mutant) not in known]
    print(f"{len(results) - len(survivors)} of {len(results)} mutants are killed, "
          f"{len(survivors) - len(new)} survivors are known, {len(new)} are new")  # fmt: skip
    for key in sorted(known.keys() & killed):
        print(f"killed now, to be removed from {file.name}: {key[0]}: {key[2]}")
    for mutant in new:
        print(f"NEW survivor in {mutant['module']}")
        print(f"    - {mutant['line']}\n    + {mutant['mutation']}")
    if not write:
        return int(bool(new))
    entries = [entry for key, entry in known.items() if key not in killed]
    entries += [{**mutant, "reason": None} for mutant in new]
    text = json.dumps(sorted(entries, key=_key), indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    return 0


def _key(entry: Entry) -> tuple[str, str, str]:
    return str(entry["module"]), str(entry["line"]), str(entry["mutation"])
