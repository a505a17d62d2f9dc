"""What clients speak: endpoints, the bodies they take and the documents they answer with."""
