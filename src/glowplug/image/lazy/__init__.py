"""Mounting an image before its content is here: the blob daemon, EROFS mounts, traces and prefetch."""
