"""Raw material to files, offline: videos to clips, stills, features, clip tensors and sample lists."""
