"""Pages to look at: the report that train.py leaves behind, and the photos that infer.py segments."""
