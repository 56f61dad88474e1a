"""Where models run: one file per runtime, all behind `base.Runtime`, fed by `export.Exporter`."""
