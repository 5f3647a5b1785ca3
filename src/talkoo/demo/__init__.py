"""`talkoo demo`: the main job from funding to serving, on one machine, with a report."""
