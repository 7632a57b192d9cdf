"""Training: `run.train(config, ...)` makes a checkpoint of a list of samples.

building   the narrator as training begins with it
plan       which samples make a step, and which process computes what
batches    a step's micro-batches as tensors, each token's loss with its weight
parallel   one process or many: DDP, FSDP, DeepSpeed
schedule   learning rates
loop       steps: forward, backward, update
evaluation loss on held-out samples, the best weights, when to stop
states     what a killed run goes on from
progress   train_log.jsonl, stderr, TensorBoard, the loss curve
run        all of these, in a run's folder
"""
