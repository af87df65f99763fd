"""The controller: places volumes, wants exports, makes keys, removes finalizers. Thin: read, decide, write."""
