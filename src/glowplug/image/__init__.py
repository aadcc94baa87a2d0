"""Root filesystems: resolve, build, mount."""
