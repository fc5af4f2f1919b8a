"""TensorBoard's files of events.

usage: python tb_events.py bytes           writes the array of tests/93_tools.c: an event as TensorBoard's writer
                                           writes it
       python tb_events.py read RUN_DIR    reads a run's events as TensorBoard does, and compares every value with
                                           metrics.jsonl: "N scalars of N tags"; exit status 77 without TensorBoard
"""
import io
import json
import struct
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError:
    sys.exit(77)


def write_bytes():
    class File(io.BytesIO):
        def close(self):
            pass

    event = Event(wall_time=1.5, step=300)
    event.summary.value.append(Summary.Value(tag="train/loss", simple_value=0.6931))
    event.summary.value.append(Summary.Value(tag="eval/rewards/margins", simple_value=-2e-9))
    f = File()
    RecordWriter(f).write(event.SerializeToString())
    data = f.getvalue()
    for i in range(0, len(data), 16):
        print("        " + ", ".join("0x%02x" % b for b in data[i:i + 16]) + ",")


def read(run):
    want = {}
    with open(run + "/metrics.jsonl") as f:
        for line in map(json.loads, f):
            for key, value in line.items():
                if key != "step":
                    tag = "eval/" + key[5:] if key.startswith("eval_") else "train/" + key
                    want.setdefault(tag, []).append((line["step"], struct.unpack("f", struct.pack("f", value))[0]))
    events = EventAccumulator(run, size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
    for tag in sorted(set(want) | set(found)):
        if want.get(tag) != found.get(tag):
            sys.exit("%s: want %s, found %s" % (tag, want.get(tag), found.get(tag)))
    times = [e.wall_time for e in events.Scalars("train/loss")]
    if times != sorted(times):
        sys.exit("the times do not rise: %s" % times)
    print("%d scalars of %d tags" % (sum(map(len, found.values())), len(tags)))


if len(sys.argv) == 2 and sys.argv[1] == "bytes":
    write_bytes()
elif len(sys.argv) == 3 and sys.argv[1] == "read":
    read(sys.argv[2])
else:
    sys.exit(__doc__)
