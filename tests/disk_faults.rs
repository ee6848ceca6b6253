//! Disks that fill up, and files that others delete, replace or change.
