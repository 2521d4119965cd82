"""posttrain: recipes -> mixture -> trainer -> checkpoint -> scorecard -> report.

Import the floor you need (`posttrain.data`, `posttrain.losses`, ...); this module holds the version only,
so that `posttrain check` starts without torch.
"""

__version__ = "0.1.0"
