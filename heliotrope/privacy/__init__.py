"""What training tells about those whose data it uses: accounting, shared by both modes."""
