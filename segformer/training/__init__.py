"""What a run needs beside its loop: settings and recipes, ranks, stopping, its folder, checkpoints and history."""
