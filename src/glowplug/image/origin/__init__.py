"""Where trees come from: folders, tar archives, OCI layouts and registries, Dockerfiles."""
