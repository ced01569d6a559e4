"""E2ENet: 3D medical image segmentation with dynamic sparse feature fusion."""
