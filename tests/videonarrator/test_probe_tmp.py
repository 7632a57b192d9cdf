import json
def test_lora(lora_run, full_run):
    for r in (lora_run, full_run):
        for f in sorted(r.rglob("*")):
            print(f.relative_to(r), f.stat().st_size)
    print((lora_run/"train_log.jsonl").read_text())
    print((lora_run/"checkpoint/adapter/adapter_config.json").read_text())
    print((lora_run/"checkpoint/narrator.json").read_text())
    print((lora_run/"run.json").read_text())
