"""Does it save labels? Active learning with hidden labels as the annotator, every strategy on equal terms."""
